"""One UNETR decoder whose levels follow from the patch size (Hatamizadeh et al. 2022; paper, section 3.3).

Levels 1..4 have strides 2, 4, 8, 16 for a cubic patch. The token grid sits at level log2(patch edge): finer
skips climb to their level with transposed convolutions, a skip at the grid's own level passes one residual
block, and coarser levels are average-pooled (kernel 3, stride 2, padding 1) from the grid. Axes with a
smaller patch edge keep their full resolution on the finest levels, so a patch of (8, 8, 4) has strides
(2,2,1), (4,4,2), (8,8,4), then (16,16,8). Convolution blocks are MONAI's, so that UNETR weights convert one
to one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock, get_conv_layer
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.errors import ShapeError
from sparseg.layers.recompute import run_part
from sparseg.shapes import Triple, as_triple

NUM_LEVELS = 4


def level_strides(patch_size: Triple) -> list[Triple]:
    """Step from level l-1 to level l per axis (each 1 or 2), for l = 1..4; level 0 is the image.

    The product over the first log2(max edge) steps is the patch size; later steps are poolings of the token
    grid.
    """
    halvings = [edge.bit_length() - 1 for edge in patch_size]
    grid_level = max(halvings)
    steps: list[Triple] = []
    for level in range(1, NUM_LEVELS + 1):
        a, b, c = (2 if level > grid_level - count else 1 for count in halvings)
        steps.append((a, b, c))
    return steps


def pool_grid(features: Tensor) -> Tensor:
    """Average pooling one level down: kernel 3, stride 2, zero padding 1 (counted).

    An edge n becomes ceil(n / 2).
    """
    # Padded apart: torch's own padding refuses edges below the kernel size, though the padded edge is large
    # enough.
    return F.avg_pool3d(F.pad(features, (1,) * 6), kernel_size=3, stride=2)


class SkipPath(nn.Module):
    """Brings a token map from the grid to one decoder level.

    Args:
        in_channels: Token width E.
        out_channels: Width of the level.
        up_steps: Up-sampling steps from the grid upwards; empty where the level is at the grid or coarser.
        num_pools: Poolings below the grid.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, up_steps: Sequence[Triple], num_pools: int
    ) -> None:
        super().__init__()
        self.num_pools = num_pools
        self.init: nn.Module
        if up_steps:
            self.init = up_convolution(in_channels, out_channels, up_steps[0])
        else:
            self.init = residual_block(in_channels, out_channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                up_convolution(out_channels, out_channels, step),
                residual_block(out_channels, out_channels),
            )
            for step in up_steps[1:]
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, E, h, w, d] -> [B, out_channels, *level size]."""
        for _ in range(self.num_pools):
            features = pool_grid(features)
        features = self.init(features)
        for block in self.blocks:
            features = block(features)
        return features


class UpBlock(nn.Module):
    """Up-sample by a transposed convolution, join the skip, one residual block (MONAI's `UnetrUpBlock`)."""

    def __init__(self, in_channels: int, out_channels: int, step: Triple) -> None:
        super().__init__()
        self.transp_conv = up_convolution(in_channels, out_channels, step)
        self.conv_block = residual_block(2 * out_channels, out_channels)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Coarse features and the skip of the next finer level -> features of that level."""
        features = self.transp_conv(features)
        # A pooled odd edge n is ceil(n/2); doubled it exceeds n by one, which is cut off again.
        h, w, d = skip.shape[2:]
        result: Tensor = self.conv_block(torch.cat((features[..., :h, :w, :d], skip), dim=1))
        return result


class UNETRDecoder(nn.Module):
    """Dense decoder: image + token maps -> logits.

    Args:
        in_channels: Image channels C.
        num_classes: K, background included.
        embed_dim: Token width E.
        feature_size: Width F of the finest level; levels 1, 2, 3 have 2F, 4F, 8F.
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
        widths = [feature_size * 2**level for level in range(NUM_LEVELS)]
        self.encoder1 = residual_block(in_channels, feature_size)
        self.skip_paths = nn.ModuleList(
            SkipPath(
                embed_dim,
                widths[level],
                up_steps=steps[level : self.grid_level][::-1],
                num_pools=max(0, level - self.grid_level),
            )
            for level in range(1, NUM_LEVELS)
        )
        in_widths = [*widths[1:], embed_dim]
        self.up_blocks = nn.ModuleList(
            UpBlock(in_widths[level], widths[level], steps[level]) for level in reversed(range(NUM_LEVELS))
        )
        self.out = UnetOutBlock(spatial_dims=3, in_channels=feature_size, out_channels=num_classes)
        self.deep_outs = nn.ModuleList(
            UnetOutBlock(spatial_dims=3, in_channels=width, out_channels=num_classes)
            for width in widths[1 : deep_supervision + 1]
        )

    def forward(self, image: Tensor, skips: Sequence[Tensor], final: Tensor) -> Tensor | list[Tensor]:
        """Decode.

        Args:
            image: `[B, C, H, W, D]`.
            skips: Three token maps `[B, E, h, w, d]`, for levels 1, 2, 3 (from shallow to deep blocks).
            final: Token map `[B, E, h, w, d]` for the deepest level.

        Returns:
            Logits `[B, K, H, W, D]`; in training with deep supervision a list of them and of the logits of
            levels 1 and 2.

        Raises:
            ShapeError: the window is so small that a level would hold a single voxel.
        """
        require_two_voxels(as_triple(final.shape[2:], name="grid"), self.patch_size, NUM_LEVELS - 1)
        maps = [run_part(self.encoder1, image, recompute=self.recompute)]
        for path, skip in zip(self.skip_paths, skips, strict=True):
            maps.append(run_part(path, skip, recompute=self.recompute))
        features = final
        for _ in range(NUM_LEVELS - self.grid_level):
            features = pool_grid(features)
        levels: list[Tensor] = []
        for up_block, skip in zip(self.up_blocks, reversed(maps), strict=True):
            features = run_part(up_block, features, skip, recompute=self.recompute)
            levels.append(features)
        logits: Tensor = self.out(features)
        if not (self.training and self.deep_outs):
            return logits
        # levels[-1] is level 0, so level 1 stands before it.
        return [logits, *(out(levels[-2 - number]) for number, out in enumerate(self.deep_outs))]


def require_two_voxels(grid: Triple, patch_size: Triple, level: int) -> None:
    """Instance norm needs more than one voxel at the coarsest level that is normed.

    Args:
        grid: Patches per axis of the window.
        patch_size: Patch edges.
        level: That level; the token grid is no more than one step coarser.

    Raises:
        ShapeError: it has one.
    """
    steps, grid_level = level_strides(patch_size), max(edge.bit_length() - 1 for edge in patch_size)
    edges = list(grid)
    for _ in range(grid_level, level):
        edges = [(edge + 1) // 2 for edge in edges]
    if level < grid_level:
        edges = [edge * step for edge, step in zip(edges, steps[level], strict=True)]
    if max(edges) == 1:
        raise ShapeError(
            f"the window must hold at least {2 * 2 ** max(0, level - grid_level)} patches on one axis",
            received=tuple(n * edge for n, edge in zip(grid, patch_size, strict=True)),
            remedy="use a larger roi_size",
        )


def residual_block(in_channels: int, out_channels: int) -> nn.Module:
    """Two 3³ convolutions with instance norm beside an identity or a 1³ convolution (MONAI's)."""
    block: nn.Module = UnetResBlock(
        3, in_channels, out_channels, kernel_size=3, stride=1, norm_name="instance"
    )
    return block


def up_convolution(in_channels: int, out_channels: int, step: Triple) -> nn.Module:
    """Up-sampling by kernel = stride = step."""
    layer: nn.Module = get_conv_layer(
        3, in_channels, out_channels, kernel_size=step, stride=step, conv_only=True, is_transposed=True
    )
    return layer
