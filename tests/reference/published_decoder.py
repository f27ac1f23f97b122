"""The convolutional decoders of the published models (UNETR for patch 16, one up-sampling less for patch 8).

Key names and order of operations are those of MONAI's UNETR blocks (Apache-2.0, monai 1.6); here they are
plain functions over a `state_dict`, one image (no batch axis) at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def decode(
    state: State, sample: Tensor, skips: list[Tensor], final: Tensor, prefix: str = "decoder."
) -> Tensor:
    """Return logits (K, H, W, D).

    Args:
        state: Weights; patch 8 is recognised by `encoder4` having no transposed convolution.
        sample: Image (C, H, W, D).
        skips: Three token grids (E, h, w, d), shallow first.
        final: Deepest token grid (E, h, w, d).
        prefix: What stands before `encoder1` in the keys.
    """
    patch8 = f"{prefix}encoder4.layer.conv1.conv.weight" in state
    fine = residual(state, f"{prefix}encoder1.layer", sample)
    skip2 = ladder(state, f"{prefix}encoder2", skips[0])
    skip3 = ladder(state, f"{prefix}encoder3", skips[1])
    if patch8:
        skip4 = residual(state, f"{prefix}encoder4.layer", skips[2])
        x = average_pool(final)
    else:
        skip4 = ladder(state, f"{prefix}encoder4", skips[2])
        x = final
    for name, skip in (("decoder5", skip4), ("decoder4", skip3), ("decoder3", skip2), ("decoder2", fine)):
        x = up(state, f"{prefix}{name}.transp_conv", x)
        x = residual(state, f"{prefix}{name}.conv_block", torch.cat([x, skip]))
    kernel = state[f"{prefix}out.conv.conv.weight"]
    return F.conv3d(x[None], kernel, state[f"{prefix}out.conv.conv.bias"])[0]


def ladder(state: State, name: str, x: Tensor) -> Tensor:
    """One transposed convolution, then every stored pair of transposed convolution and residual block."""
    x = up(state, f"{name}.transp_conv_init", x)
    step = 0
    while f"{name}.blocks.{step}.0.conv.weight" in state:
        x = up(state, f"{name}.blocks.{step}.0", x)
        x = residual(state, f"{name}.blocks.{step}.1", x)
        step += 1
    return x


def residual(state: State, name: str, x: Tensor) -> Tensor:
    """Two 3³ convolutions with instance norm; the shortcut has a 1³ convolution where channels change."""
    out = leaky(instance_norm(convolve(state, f"{name}.conv1", x)))
    out = instance_norm(convolve(state, f"{name}.conv2", out))
    if f"{name}.conv3.conv.weight" in state:
        x = instance_norm(convolve(state, f"{name}.conv3", x))
    return leaky(out + x)


def convolve(state: State, name: str, x: Tensor) -> Tensor:
    """Convolution without bias that keeps the grid."""
    kernel = state[f"{name}.conv.weight"]
    return F.conv3d(x[None], kernel, padding=kernel.shape[-1] // 2)[0]


def up(state: State, name: str, x: Tensor) -> Tensor:
    """Transposed convolution, kernel and stride 2: every voxel becomes a 2³ cube of its own."""
    kernel = state[f"{name}.conv.weight"]
    channels, height, width, depth = kernel.shape[1], *x.shape[1:]
    out = x.new_zeros(channels, 2 * height, 2 * width, 2 * depth)
    for a in range(2):
        for b in range(2):
            for c in range(2):
                out[:, a::2, b::2, c::2] = torch.einsum("io,ihwd->ohwd", kernel[:, :, a, b, c], x)
    return out


def instance_norm(x: Tensor) -> Tensor:
    """Normalise every channel over its own voxels, biased variance, nothing learned."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU, slope 0.01."""
    return torch.where(x > 0, x, 0.01 * x)


def average_pool(x: Tensor) -> Tensor:
    """Kernel 3, stride 2, padding 1; the zeros of the padding count as voxels."""
    padded = F.pad(x, (1, 1, 1, 1, 1, 1))
    size = [(edge - 1) // 2 + 1 for edge in x.shape[1:]]
    out = x.new_zeros(x.shape[0], *size)
    for i in range(size[0]):
        for j in range(size[1]):
            for k in range(size[2]):
                cube = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, 2 * k : 2 * k + 3]
                out[:, i, j, k] = cube.sum(dim=(1, 2, 3)) / 27
    return out
