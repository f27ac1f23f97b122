"""Random weights under the published key names, at tiny widths, so that parity tests need no files."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def make_published_state_dict(
    seed: int,
    *,
    grid: tuple[int, int, int] = (4, 4, 4),
    patch_size: int = 8,
    in_channels: int = 1,
    num_classes: int = 3,
    embed_dim: int = 24,
    depth: int = 4,
    num_stages: int = 3,
    assembly_dim: int = 24,
    assembly_depth: int = 1,
    feature_size: int = 2,
    mlp_ratio: int = 4,
    sparse: bool = True,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return a published sparse (or dense) model with random values for every key."""
    length = grid[0] * grid[1] * grid[2]
    shapes = dict(encoder_shapes(embed_dim, depth, mlp_ratio, in_channels, patch_size))
    shapes["encoder.pos_embed"] = (1, 1 + length, embed_dim)
    if sparse:
        shapes |= dict(predictor_shapes(embed_dim, num_stages))
        shapes |= dict(completion_shapes(embed_dim, assembly_dim, assembly_depth, num_stages, mlp_ratio))
    shapes |= dict(decoder_shapes(embed_dim, feature_size, in_channels, num_classes, patch_size))
    state = fill(shapes, seed, dtype)
    if sparse:
        state["encoder.policy"] = torch.ones(1, 1 + length, dtype=dtype)
        table = sine_cosine_table(grid, assembly_dim).to(dtype)
        state["completion_net.completion.pos_embed"] = table
    return state


def make_selfmedmae_state_dict(
    seed: int,
    *,
    grid: tuple[int, int, int] = (4, 4, 4),
    patch_size: int = 8,
    in_channels: int = 1,
    embed_dim: int = 24,
    depth: int = 4,
    decoder_dim: int = 12,
    decoder_depth: int = 1,
    mlp_ratio: int = 4,
) -> dict[str, Tensor]:
    """Return a masked-autoencoder pre-training state with random values for every key."""
    length = grid[0] * grid[1] * grid[2]
    num_voxels = in_channels * patch_size**3
    shapes = dict(encoder_shapes(embed_dim, depth, mlp_ratio, in_channels, patch_size))
    shapes["mask_token"] = (1, 1, decoder_dim)
    shapes["decoder_pos_embed"] = (1, length, decoder_dim)
    shapes |= dict(linear_shapes("encoder_to_decoder", embed_dim, decoder_dim))
    for index in range(decoder_depth):
        shapes |= dict(block_shapes(f"decoder.blocks.{index}", decoder_dim, mlp_ratio))
    shapes |= dict(norm_shapes("decoder.norm", decoder_dim))
    shapes |= dict(linear_shapes("decoder.head", decoder_dim, num_voxels))
    state = fill(shapes, seed, torch.float32)
    state["encoder_pos_embed"] = sine_cosine_table(grid, embed_dim)[:, 1:]
    return state


def wrap(state: dict[str, Tensor], *, outer: bool = True, module: bool = True) -> dict[str, object]:
    """Return the state as it often lies in files: under `state_dict`, every key behind `module.`."""
    inner = {f"module.{key}" if module else key: value for key, value in state.items()}
    return {"epoch": 7, "state_dict": inner} if outer else dict(inner)


def fill(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Draw every tensor in key order; matrices keep the variance of what passes through them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) >= 2 and not key.endswith(("_token", "pos_embed")) and "layer_tokens" not in key:
            fan_in = shape[0] if "transp" in key else noise[0].numel()
            value = noise / fan_in**0.5
        elif "norm" in key or "in_mlp.0" in key:
            value = 0.2 * noise + (1 if key.endswith("weight") else 0)
        else:
            value = 0.2 * noise
        state[key] = value.to(dtype)
    return state


def sine_cosine_table(grid: tuple[int, int, int], width: int) -> Tensor:
    """Return (1, 1 + L, E): a zero row, then sin h, cos h, sin w, cos w, sin d, cos d for every grid cell."""
    num_frequencies = width // 6
    rows = [torch.zeros(width)]
    frequencies = [10000.0 ** (-i / num_frequencies) for i in range(num_frequencies)]
    for i in range(grid[0]):
        for j in range(grid[1]):
            for k in range(grid[2]):
                parts = []
                for place in (i, j, k):
                    angles = torch.tensor(
                        [place * frequency for frequency in frequencies], dtype=torch.float64
                    )
                    parts += [torch.sin(angles), torch.cos(angles)]
                rows.append(torch.cat(parts).float())
    return torch.stack(rows)[None]


def encoder_shapes(width: int, depth: int, mlp_ratio: int, in_channels: int, patch: int) -> Shapes:
    """Keys of patch embedding, class token, blocks and final norm."""
    yield "encoder.cls_token", (1, 1, width)
    yield "encoder.patch_embed.proj.weight", (width, in_channels, patch, patch, patch)
    yield "encoder.patch_embed.proj.bias", (width,)
    for index in range(depth):
        yield from block_shapes(f"encoder.blocks.{index}", width, mlp_ratio)
    yield from norm_shapes("encoder.norm", width)


def predictor_shapes(width: int, num_stages: int) -> Shapes:
    """Keys of the score predictors and of the norms of the pruned groups."""
    for stage in range(num_stages):
        name = f"encoder.score_predictor_list.{stage}"
        yield from norm_shapes(f"{name}.in_mlp.0", width)
        yield from linear_shapes(f"{name}.in_mlp.1", width, width)
        yield from linear_shapes(f"{name}.out_mlp.0", width, width // 2)
        yield from linear_shapes(f"{name}.out_mlp.2", width // 2, width // 4)
        yield from linear_shapes(f"{name}.out_mlp.4", width // 4, 1)
        yield from norm_shapes(f"encoder.mid_norm_list.{stage}", width)


def completion_shapes(width: int, inner: int, depth: int, num_stages: int, mlp_ratio: int) -> Shapes:
    """Keys of the token completion, without its fixed position table."""
    for group in range(num_stages + 1):
        yield from linear_shapes(f"completion_net.pre_linear_list.{group}", width, inner)
        yield f"completion_net.completion.layer_tokens.{group}", (1, 1, inner)
    for index in range(depth):
        yield from block_shapes(f"completion_net.blocks.{index}", inner, mlp_ratio)
    yield from norm_shapes("completion_net.out_norm", inner)
    yield from linear_shapes("completion_net.out_linear", inner, width)


def decoder_shapes(width: int, feature: int, in_channels: int, num_classes: int, patch: int) -> Shapes:
    """Keys of the convolutional decoder: MONAI's UNETR for patch 16, one up-sampling less for patch 8."""
    yield from residual_shapes("decoder.encoder1.layer", in_channels, feature)
    fewer = 1 if patch == 8 else 0
    for name, channels, steps in (
        ("encoder2", 2, 2 - fewer),
        ("encoder3", 4, 1 - fewer),
        ("encoder4", 8, -fewer),
    ):
        out = channels * feature
        if steps < 0:
            yield from residual_shapes(f"decoder.{name}.layer", width, out)
            continue
        yield f"decoder.{name}.transp_conv_init.conv.weight", (width, out, 2, 2, 2)
        for step in range(steps):
            yield f"decoder.{name}.blocks.{step}.0.conv.weight", (out, out, 2, 2, 2)
            yield from residual_shapes(f"decoder.{name}.blocks.{step}.1", out, out)
    incoming = width
    for name, channels in (("decoder5", 8), ("decoder4", 4), ("decoder3", 2), ("decoder2", 1)):
        out = channels * feature
        yield f"decoder.{name}.transp_conv.conv.weight", (incoming, out, 2, 2, 2)
        yield from residual_shapes(f"decoder.{name}.conv_block", 2 * out, out)
        incoming = out
    yield "decoder.out.conv.conv.weight", (num_classes, feature, 1, 1, 1)
    yield "decoder.out.conv.conv.bias", (num_classes,)


def block_shapes(name: str, width: int, mlp_ratio: int) -> Shapes:
    """Keys of one transformer block."""
    yield from norm_shapes(f"{name}.norm1", width)
    yield from linear_shapes(f"{name}.attn.qkv", width, 3 * width)
    yield from linear_shapes(f"{name}.attn.proj", width, width)
    yield from norm_shapes(f"{name}.norm2", width)
    yield from linear_shapes(f"{name}.mlp.fc1", width, mlp_ratio * width)
    yield from linear_shapes(f"{name}.mlp.fc2", mlp_ratio * width, width)


def residual_shapes(name: str, incoming: int, out: int) -> Shapes:
    """Keys of one residual convolution block."""
    yield f"{name}.conv1.conv.weight", (out, incoming, 3, 3, 3)
    yield f"{name}.conv2.conv.weight", (out, out, 3, 3, 3)
    if incoming != out:
        yield f"{name}.conv3.conv.weight", (out, incoming, 1, 1, 1)


def linear_shapes(name: str, incoming: int, out: int) -> Shapes:
    """Keys of one linear layer."""
    yield f"{name}.weight", (out, incoming)
    yield f"{name}.bias", (out,)


def norm_shapes(name: str, width: int) -> Shapes:
    """Keys of one layer norm."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
