"""Patch embedding: a strided convolution with kernel = stride = patch edge (paper, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from sparseg.shapes import Triple, token_grid


class PatchEmbed(nn.Module):
    """Cuts a window into cubes and projects each to one token.

    Args:
        in_channels: Image channels C.
        embed_dim: Token width E.
        patch_size: Patch edges in voxels, per axis (H, W, D).
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: Triple) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W, D] -> [B, L, E], tokens row-major over the grid (h, w, d)."""
        tokens: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return tokens


def cut_patches(volume: Tensor, patch_size: Triple) -> Tensor:
    """[B, C, H, W, D] -> [B, C, L, voxels of a patch], patches row-major over the grid."""
    h, w, d = token_grid(volume.shape[2:], patch_size)
    a, b, c = patch_size
    cubes = volume.reshape(*volume.shape[:2], h, a, w, b, d, c).permute(0, 1, 2, 4, 6, 3, 5, 7)
    return cubes.reshape(*volume.shape[:2], h * w * d, a * b * c)
