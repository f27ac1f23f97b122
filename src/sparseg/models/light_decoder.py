"""The decoder of Primus: transposed convolutions from token to voxels, and nothing else.

Every step doubles the resolution with a kernel as large as its stride, so each token is decoded on its own:
what one patch holds after the encoder decides about its voxels, whatever the others hold. Norms are over
channels, so they do not join tokens either. Widths fall by one factor per step, from the token width to
twice the number of classes before the last (Wald et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sparseg.layers.recompute import run_part
from sparseg.models.decoder import level_strides
from sparseg.shapes import Triple

_WIDTH_STEP = 8


class LightDecoder(nn.Module):
    """Completed token map -> logits.

    Args:
        in_channels: Image channels, which it does not look at.
        num_classes: K, background included.
        embed_dim: Token width E.
        feature_size: Not used: widths follow from E and K.
        patch_size: Patch edges (each 1, 2, 4, 8 or 16).
        deep_supervision: Number of further output layers, at levels 1 and 2.

    Attributes:
        recompute: Whether the steps' activations are computed again in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,  # noqa: ARG002
        num_classes: int,
        embed_dim: int,
        *,
        feature_size: int,  # noqa: ARG002
        patch_size: Triple,
        deep_supervision: int = 0,
    ) -> None:
        super().__init__()
        self.recompute = False
        num_steps = max(patch_size).bit_length() - 1
        # Coarsest step first.
        strides = level_strides(patch_size)[:num_steps][::-1]
        widths = ladder_widths(embed_dim, num_classes, num_steps)
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose3d(widths[number], widths[number + 1], kernel_size=stride, stride=stride),
                ChannelNorm(widths[number + 1]),
                nn.GELU(),
            )
            for number, stride in enumerate(strides[:-1])
        )
        self.out = nn.ConvTranspose3d(widths[-1], num_classes, kernel_size=strides[-1], stride=strides[-1])
        self.deep_outs = nn.ModuleList(
            nn.Conv3d(widths[num_steps - level], num_classes, kernel_size=1)
            for level in range(1, deep_supervision + 1)
        )

    def forward(self, image: Tensor, skips: Sequence[Tensor], final: Tensor) -> Tensor | list[Tensor]:  # noqa: ARG002
        """Decode.

        Args:
            image: Not used.
            skips: Not used.
            final: Token map `[B, E, h, w, d]` of the completed grid.

        Returns:
            Logits `[B, K, H, W, D]`; in training with deep supervision a list of them and of the logits of
            levels 1 and 2.
        """
        levels = [final]
        for step in self.steps:
            levels.append(run_part(step, levels[-1], recompute=self.recompute))
        logits: Tensor = self.out(levels[-1])
        if not (self.training and self.deep_outs):
            return logits
        return [logits, *(out(levels[-1 - number]) for number, out in enumerate(self.deep_outs))]


def ladder_widths(embed_dim: int, num_classes: int, num_steps: int) -> list[int]:
    """Channels that enter each step: E divided by one factor per step, rounded to multiples of 8.

    The factor is that by which `num_steps` divisions lead from E to twice the number of classes.
    """
    factor = (embed_dim / (2 * num_classes)) ** (1 / num_steps)
    inner = (embed_dim / factor**step for step in range(1, num_steps))
    return [embed_dim, *(max(_WIDTH_STEP, round(width / _WIDTH_STEP) * _WIDTH_STEP) for width in inner)]


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each voxel."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W, D] -> [B, C, H, W, D]."""
        result: Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return result
