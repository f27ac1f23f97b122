"""A decoder that convolves at half the image's resolution and never finer.

In the UNETR decoder the blocks at the image's own resolution take more than half of the time. Here the image
enters with the voxels of each step of 2 stacked as channels, so that nothing of it is lost, and the logits of
those voxels leave through one transposed convolution of what was decoded and of what the image gave. Levels
are those of `decoder.py`; levels 2 and above take token maps as UNETR's do, level 1 takes the image alone,
and joins are sums, which halves the first convolution behind each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparseg.layers.recompute import run_part
from sparseg.models.decoder import (
    NUM_LEVELS,
    SkipPath,
    level_strides,
    pool_grid,
    require_two_voxels,
    residual_block,
    up_convolution,
)
from sparseg.shapes import Triple, as_triple, token_grid
from sparseg.tokens.embed import cut_patches

_BOTTOM = 3


class HalfResolutionDecoder(nn.Module):
    """Decoder without convolutions at the image's resolution: image + token maps -> logits.

    Args:
        in_channels: Image channels C.
        num_classes: K, background included.
        embed_dim: Token width E.
        feature_size: F; levels 1, 2, 3 have 2F, 4F, 8F, as in `UNETRDecoder`.
        patch_size: Patch edges (each 1, 2, 4, 8 or 16).
        deep_supervision: Number of further output layers, at levels 1 and 2.

    Attributes:
        recompute: Whether the levels' activations are computed again in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dim: int,
        *,
        feature_size: int,
        patch_size: Triple,
        deep_supervision: int = 0,
    ) -> None:
        super().__init__()
        self.recompute = False
        steps = level_strides(patch_size)
        self.patch_size = patch_size
        self.grid_level = max(edge.bit_length() - 1 for edge in patch_size)
        # The level the completed grid enters at: its own, or level 3 below a finer one.
        self.bottom = max(_BOTTOM, self.grid_level)
        widths = {level: feature_size * 2 ** min(level, _BOTTOM) for level in range(1, NUM_LEVELS + 1)}
        self.pixels = Pixels(in_channels, widths[1], steps[0])
        self.enter = nn.Sequential(
            nn.Conv3d(embed_dim, widths[self.bottom], kernel_size=1),
            residual_block(widths[self.bottom], widths[self.bottom]),
        )
        self.skip_paths = nn.ModuleList(
            SkipPath(
                embed_dim,
                widths[level],
                up_steps=steps[level : self.grid_level][::-1],
                num_pools=max(0, level - self.grid_level),
            )
            for level in range(2, self.bottom)
        )
        self.up_blocks = nn.ModuleList(
            SumBlock(widths[level + 1], widths[level], steps[level])
            for level in reversed(range(1, self.bottom))
        )
        # The image's own features beside the decoded ones: so few channels could not tell the classes of all
        # voxels of a step apart.
        self.out = nn.ConvTranspose3d(2 * widths[1], num_classes, kernel_size=steps[0], stride=steps[0])
        self.deep_outs = nn.ModuleList(
            nn.Conv3d(widths[level], num_classes, kernel_size=1) for level in range(1, deep_supervision + 1)
        )

    def forward(self, image: Tensor, skips: Sequence[Tensor], final: Tensor) -> Tensor | list[Tensor]:
        """Decode.

        Args:
            image: `[B, C, H, W, D]`.
            skips: Three token maps `[B, E, h, w, d]`, from shallow to deep blocks; those that UNETR has at
                levels 2 and 3 are used, the latter only where the patch edge is 16.
            final: Token map `[B, E, h, w, d]` of the completed grid.

        Returns:
            Logits `[B, K, H, W, D]`; in training with deep supervision a list of them and of the logits of
            levels 1 and 2.

        Raises:
            ShapeError: the window is so small that a level would hold a single voxel.
        """
        require_two_voxels(as_triple(final.shape[2:], name="grid"), self.patch_size, self.bottom)
        maps = [run_part(self.pixels, image, recompute=self.recompute)]
        for path, skip in zip(self.skip_paths, skips[1 : self.bottom - 1], strict=True):
            maps.append(run_part(path, skip, recompute=self.recompute))
        features = final
        for _ in range(self.bottom - self.grid_level):
            features = pool_grid(features)
        features = run_part(self.enter, features, recompute=self.recompute)
        levels: list[Tensor] = [features]
        for up_block, skip in zip(self.up_blocks, reversed(maps), strict=True):
            features = run_part(up_block, features, skip, recompute=self.recompute)
            levels.append(features)
        logits: Tensor = self.out(torch.cat((features, maps[0]), dim=1))
        if not (self.training and self.deep_outs):
            return logits
        return [logits, *(out(levels[-1 - number]) for number, out in enumerate(self.deep_outs))]


class Pixels(nn.Module):
    """The image at level 1: the voxels of each step stacked as channels, then a residual block."""

    def __init__(self, in_channels: int, out_channels: int, step: Triple) -> None:
        super().__init__()
        self.step = step
        self.block = residual_block(in_channels * step[0] * step[1] * step[2], out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W, D] -> [B, out_channels, *level 1]; edges are multiples of the step."""
        stacked = cut_patches(image, self.step).transpose(2, 3).flatten(1, 2)
        stacked = stacked.reshape(*stacked.shape[:2], *token_grid(image.shape[2:], self.step))
        result: Tensor = self.block(stacked)
        return result


class SumBlock(nn.Module):
    """Up-sample by a transposed convolution, add the skip, one residual block."""

    def __init__(self, in_channels: int, out_channels: int, step: Triple) -> None:
        super().__init__()
        self.transp_conv = up_convolution(in_channels, out_channels, step)
        self.block = residual_block(out_channels, out_channels)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Coarse features and the skip of the next finer level -> features of that level."""
        h, w, d = skip.shape[2:]
        result: Tensor = self.block(self.transp_conv(features)[..., :h, :w, :d] + skip)
        return result
