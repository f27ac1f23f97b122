"""`SparseUNETR`: sparse encoding, token completion, dense decoding.

Without pruning stages it is a dense UNETR.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from sparseg.config import parse_config
from sparseg.errors import ShapeError
from sparseg.layers.block import Block
from sparseg.models.completion import make_completion
from sparseg.models.config import SegmenterConfig
from sparseg.models.counts import require_tokens
from sparseg.models.decoders import make_decoder
from sparseg.models.encoder import EncoderOutput, SparseEncoder, grid_map
from sparseg.models.initial import init_like_vit
from sparseg.models.network import Network
from sparseg.shapes import Triple, num_tokens, token_grid
from sparseg.tokens.assemble import assemble_grid
from sparseg.tokens.stages import Selection, StageScores, StageTokens


class SegmenterOutput(NamedTuple):
    """Logits `[B, K, H, W, D]` and the token groups they came from (pruned in stage order.

    Survivors last). With deep supervision, in training, the logits are a list, finest first.
    """

    logits: Tensor | list[Tensor]
    stages: list[StageTokens]


class SelectionOutput(NamedTuple):
    """`SegmenterOutput` and what each pruning stage decided.

    A type of its own, because callers unpack the two values of `SegmenterOutput`.
    """

    logits: Tensor | list[Tensor]
    stages: list[StageTokens]
    selection: list[StageScores]


class SparseUNETR(Network):
    """Segmentation network with token sparsification (Zhou et al., IPMI 2023).

    With `pruning_stages=()` it is the dense model of the same size: no scores, no assembler, per-depth skips.

    Args:
        in_channels: Image channels C.
        num_classes: K, background included.
        roi_size: Window the position embedding is made for, in voxels (H, W, D). Other windows work as long
            as every edge is a multiple of the patch edge; the embedding is then resized.
        patch_size: Patch edge(s) in voxels: 4, 8, 16, or per axis such as (8, 8, 4).
        embed_dim: Token width E.
        depth: Number of transformer blocks.
        num_heads: Attention heads.
        feature_size: Width of the decoder's finest level.
        pruning_stages: Zero-based blocks *before* which tokens are pruned.
        keep_ratio: Share of the tokens entering a stage that leave it, one for all stages or one per stage.
        **options: Further fields of `SegmenterConfig` (`num_keep`, `mlp_ratio`, `drop_path`, `skips`, ...).

    Raises:
        ConfigError: a setting is unknown or out of range, or `roi_size` is no multiple of the patch.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 14,
        roi_size: int | Sequence[int] = (96, 96, 96),
        patch_size: int | Sequence[int] = 8,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        feature_size: int = 16,
        pruning_stages: Sequence[int] = (3, 6, 9),
        keep_ratio: float | Sequence[float] = 0.1,
        **options: Any,
    ) -> None:
        super().__init__()
        config = parse_config(
            SegmenterConfig,
            {
                "in_channels": in_channels,
                "num_classes": num_classes,
                "roi_size": roi_size,
                "patch_size": patch_size,
                "embed_dim": embed_dim,
                "depth": depth,
                "num_heads": num_heads,
                "feature_size": feature_size,
                # Whatever cannot be a tuple is refused by the settings.
                "pruning_stages": _as_tuple(pruning_stages),
                "keep_ratio": _as_tuple(keep_ratio),
                **options,
            },
            where="SparseUNETR",
        )
        require_tokens(config)
        self.config: SegmenterConfig = config
        self.encoder = SparseEncoder(config)
        self.assembler = make_completion(config) if config.pruning_stages else None
        self.decoder = make_decoder(config)
        init_like_vit(self)

    def token_counts(
        self, size: Sequence[int] | None = None, keep_ratios: tuple[float, ...] | None = None
    ) -> list[int]:
        """Patch tokens at the start and after each pruning stage (with merging, after each block).

        Args:
            size: Window in voxels; None takes the roi.
            keep_ratios: One per pruning stage in place of the model's.
        """
        grid = token_grid(self.config.roi_size if size is None else size, self.config.patch_size)
        return self.encoder.token_counts(num_tokens(grid), keep_ratios)

    def parts(self) -> dict[str, nn.Module | None]:
        """Encoder, assembler and decoder."""
        return {"encode": self.encoder, "assemble": self.assembler, "decode": self.decoder}

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of encoder and assembler."""
        return [part for part in self.modules() if isinstance(part, Block)]

    def with_decisions(self, image: Tensor) -> tuple[Tensor, list[StageScores]]:
        """Logits of the image grid, and what each pruning stage decided."""
        found = self(image, return_selection=True)
        return found.logits[0] if isinstance(found.logits, list) else found.logits, found.selection

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """See `Network`."""
        for part in (self.encoder, self.assembler, self.decoder):
            if part is not None:
                part.recompute = enabled

    def forward(
        self,
        image: Tensor,
        return_stages: bool = False,
        *,
        return_selection: bool = False,
        selection: Selection | None = None,
    ) -> Tensor | list[Tensor] | SegmenterOutput | SelectionOutput:
        """Segment a batch of windows.

        Args:
            image: `[B, C, H, W, D]`, prepared as the model was trained.
            return_stages: Also return the token groups.
            return_selection: Also return the token groups and what each pruning stage decided.
            selection: Temperature, keep ratios, noise and protected tokens of this call; None takes what the
                model was built with.

        Returns:
            Logits `[B, K, H, W, D]`, or `SegmenterOutput(logits, stages)`, or
            `SelectionOutput(logits, stages, selection)`. In training with `deep_supervision` the logits are a
            list: those of the image grid, then those of decoder levels 1 and 2.

        Raises:
            ShapeError: wrong channel count, an edge that is no multiple of the patch edge, or protected
                positions that do not fit the token grid.
            ConfigError: not one keep ratio per pruning stage, or one out of range.
        """
        if image.ndim != 5 or image.shape[1] != self.config.in_channels:
            raise ShapeError(
                f"the network takes [B, {self.config.in_channels}, H, W, D]",
                received=tuple(image.shape),
                remedy="give as many channels as the model was built for",
            )
        grid = token_grid(image.shape[2:], self.config.patch_size)
        place_skip = (
            assemble_grid if self.assembler is None else partial(self.assembler.place_skip, grid=grid)
        )
        encoded = self.encoder(image, selection, place_skip)
        final, skips = self.complete(encoded, grid)
        logits = self.decoder(image, [grid_map(skip, grid) for skip in skips], grid_map(final, grid))
        if return_selection:
            return SelectionOutput(logits, encoded.stages, encoded.decisions)
        return SegmenterOutput(logits, encoded.stages) if return_stages else logits

    def complete(self, encoded: EncoderOutput, grid: Triple) -> tuple[Tensor, list[Tensor]]:
        """Token completion: encoder output -> final grid and three skip grids, each `[B, L, E]`."""
        survivors, class_token = self.encoder.normed_survivors(encoded)
        if self.assembler is None:
            final = survivors.tokens
        else:
            final = self.assembler([*encoded.stages[:-1], survivors], class_token, grid)
        return final, encoded.skips or [final] * 3


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
