"""Settings of the networks of others that ours is compared with; sizes of named models: `presets.py`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from sparseg.config import Config
from sparseg.shapes import Triple, as_triple, num_tokens, token_grid

PeerName = Literal["unetr16", "swin_unetr", "segresnet", "dynunet", "mednext_s"]

UNETR_PATCH, UNETR_DEPTH = 16, 12
# Settings that one network has and the others have not.
_OWN = {"embed_dim": "unetr16", "num_heads": "unetr16", "num_levels": "dynunet", "drop_path": "swin_unetr"}
# Smallest divisor of a width: heads 3, 6, 12, 24 of a Swin transformer; groups of 8 channels.
_WIDTH_STEP = {"swin_unetr": 12, "segresnet": 8}
# Networks that normalise each channel over the deepest grid, which one voxel alone does not allow.
_NEEDS_DEEP_GRID = ("swin_unetr", "dynunet", "mednext_s")


class PeerConfig(Config):
    """Settings of `PeerNet`: a network of MONAI as its authors published it, in a size of its own.

    Attributes:
        network: `unetr16` (Hatamizadeh et al., WACV 2022, patch 16), `swin_unetr` (Hatamizadeh et al., 2022),
            `segresnet` (Myronenko, 2018), `dynunet` (the network of nnU-Net, Isensee et al., 2021),
            `mednext_s` (Roy et al., MICCAI 2023, size S, kernel 3).
        in_channels: Image channels C.
        num_classes: Outputs K, background included.
        roi_size: Window in voxels (H, W, D), a multiple of what the network halves or cuts it by: 16
            (`unetr16`, `mednext_s`), 32 (`swin_unetr`), 8 (`segresnet`), 2^(levels - 1) (`dynunet`).
        feature_size: Width of the finest level.
        embed_dim: Token width E; `unetr16` only, which needs it.
        num_heads: Attention heads; `unetr16` only, which needs it.
        num_levels: Resolution levels; `dynunet` only, which needs it.
        drop_path: Stochastic depth rate of the last block; `swin_unetr` only.
    """

    network: PeerName
    in_channels: int = Field(default=1, ge=1)
    num_classes: int = Field(default=14, ge=1)
    roi_size: Triple = (96, 96, 96)
    feature_size: int = Field(ge=1)
    embed_dim: int | None = Field(default=None, ge=1)
    num_heads: int | None = Field(default=None, ge=1)
    num_levels: int | None = Field(default=None, ge=3)
    drop_path: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("roi_size", mode="before")
    @classmethod
    def _triple(cls, value: object) -> Triple:
        if isinstance(value, int | list | tuple):
            return as_triple(value, name="size")
        raise ValueError("must be one or three positive integers")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, network in _OWN.items():
            value = getattr(self, name)
            if value and network != self.network:
                raise ValueError(f"{name} is a setting of {network}, not of {self.network}; got {value}")
            if value is None and network == self.network:
                raise ValueError(f"{self.network} needs {name}")
        if self.embed_dim and self.num_heads and self.embed_dim % self.num_heads:
            raise ValueError(
                f"the width {self.embed_dim} must be a multiple of the number of heads {self.num_heads}"
            )
        step = _WIDTH_STEP.get(self.network, 1)
        if self.feature_size % step:
            raise ValueError(
                f"feature_size of {self.network} must be a multiple of {step}, got {self.feature_size}"
            )
        self._check_roi()
        return self

    def _check_roi(self) -> None:
        step = self.window_step
        if any(edge % step for edge in self.roi_size):
            raise ValueError(f"roi_size of {self.network} must be multiples of {step}, got {self.roi_size}")
        if self.network in _NEEDS_DEEP_GRID and prod(self.roi_size) == step**3:
            raise ValueError(
                f"roi_size of {self.network} must be above {step} along one axis at least, "
                f"got {self.roi_size}"
            )

    @property
    def window_step(self) -> int:
        """Every edge of a window is a multiple of it, in voxels."""
        if self.num_levels is not None:
            return 1 << (self.num_levels - 1)
        steps = {"unetr16": UNETR_PATCH, "swin_unetr": 32, "segresnet": 8, "mednext_s": 16}
        return steps[self.network]

    @property
    def pruning_stages(self) -> tuple[int, ...]:
        """None: all peers are dense."""
        return ()

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """One per pruning stage."""
        return ()

    @property
    def num_keep(self) -> tuple[int, ...] | None:
        """No absolute counts either."""
        return None

    @property
    def depth(self) -> int:
        """Transformer blocks that layer decay counts; 0 where a network has no plain sequence of them."""
        return UNETR_DEPTH if self.network == "unetr16" else 0

    @property
    def patch_size(self) -> Triple | None:
        """Patch edges in voxels; None where there are no tokens of one size."""
        return (UNETR_PATCH, UNETR_PATCH, UNETR_PATCH) if self.network == "unetr16" else None

    def token_counts(self, size: Sequence[int] | None = None) -> list[int]:
        """Patch tokens of a window (None takes the roi); empty where there are no tokens of one size."""
        patch = self.patch_size
        return [] if patch is None else [num_tokens(token_grid(size or self.roi_size, patch))]
