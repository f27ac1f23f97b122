"""Inference of the published models, written out over a `state_dict`: slow, readable, no network class.

Zhou et al., "Token Sparsification for Faster Medical Image Segmentation", IPMI 2023. One image of the batch
at a time, one attention head at a time, token groups as plain lists of grid indices. Runs in the dtype of
the state, so double precision tells rounding from mistakes.

Shapes: C channels, H W D voxels, h w d token grid, L = h·w·d patch tokens, E width, p patch edge, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reference.published_decoder import decode

State = Mapping[str, Tensor]
Groups = list[list[int]]

BLOCK_EPS = 1e-6
PREDICTOR_EPS = 1e-5
DENSE_SKIPS = (3, 6, 9)


def published_sparse_logits(
    state: State,
    image: Tensor,
    *,
    patch_size: int,
    num_heads: int,
    assembly_num_heads: int,
    pruning_stages: Sequence[int] = (3, 6, 9),
    prune_ratio: float = 0.9,
) -> tuple[Tensor, list[Groups]]:
    """Return logits (B, K, H, W, D) of the published sparse model and, per image, its token groups.

    Args:
        state: Published weights, keys as in the published file.
        image: (B, C, H, W, D).
        patch_size: p.
        num_heads: Heads of the encoder.
        assembly_num_heads: Heads of the completion block.
        pruning_stages: Zero-based blocks before which tokens are pruned.
        prune_ratio: Share of the tokens present that each stage removes.

    Returns:
        The logits, and for each image one ascending list of grid indices per pruned group, survivors last.
    """
    logits, all_groups = [], []
    for sample in image:
        grid = token_grid(sample, patch_size)
        tokens, groups = encode_sparse(
            state,
            sample,
            patch_size=patch_size,
            num_heads=num_heads,
            pruning_stages=pruning_stages,
            prune_ratio=prune_ratio,
        )
        completed = complete(state, tokens, groups, num_heads=assembly_num_heads)
        volume = to_grid(completed, grid)
        logits.append(decode(state, sample, [volume, volume, volume], volume))
        all_groups.append(groups)
    return torch.stack(logits), all_groups


def published_dense_logits(state: State, image: Tensor, *, patch_size: int, num_heads: int) -> Tensor:
    """Return logits (B, K, H, W, D) of the published dense model: hidden states 3, 6, 9 feed the skips."""
    logits = []
    for sample in image:
        grid = token_grid(sample, patch_size)
        x = embed(state, sample, patch_size)
        hidden = []
        for index in range(depth_of(state)):
            x = block(state, f"encoder.blocks.{index}", x, num_heads)
            hidden.append(x[1:])
        final = layer_norm(state, "encoder.norm", x, BLOCK_EPS)[1:]
        skips = [to_grid(hidden[index], grid) for index in DENSE_SKIPS]
        logits.append(decode(state, sample, skips, to_grid(final, grid)))
    return torch.stack(logits)


def encode_sparse(
    state: State,
    sample: Tensor,
    *,
    patch_size: int,
    num_heads: int,
    pruning_stages: Sequence[int],
    prune_ratio: float,
) -> tuple[list[Tensor], Groups]:
    """Return normed token groups (n_s, E) and their grid indices; survivors start with the class token."""
    x = embed(state, sample, patch_size)
    present = list(range(x.shape[0] - 1))
    tokens: list[Tensor] = []
    groups: Groups = []
    for index in range(depth_of(state)):
        x = block(state, f"encoder.blocks.{index}", x, num_heads)
        if index + 1 in pruning_stages:
            stage = list(pruning_stages).index(index + 1)
            keep = select(scores(state, stage, x[1:]), num_keep(len(present), prune_ratio))
            drop = [i for i in range(len(present)) if i not in keep]
            norm = f"encoder.mid_norm_list.{stage}"
            tokens.append(layer_norm(state, norm, x[[1 + i for i in drop]], BLOCK_EPS))
            groups.append([present[i] for i in drop])
            x = x[[0] + [1 + i for i in keep]]
            present = [present[i] for i in keep]
    tokens.append(layer_norm(state, "encoder.norm", x, BLOCK_EPS))
    groups.append(present)
    return tokens, groups


def complete(state: State, tokens: list[Tensor], groups: Groups, *, num_heads: int) -> Tensor:
    """Put every group back at its grid indices and mix; returns (L, E) without the class token."""
    num_patches = sum(len(group) for group in groups)
    rows: list[Tensor | None] = [None] * (1 + num_patches)
    for stage, (group_tokens, group) in enumerate(zip(tokens, groups, strict=True)):
        projected = linear(state, f"completion_net.pre_linear_list.{stage}", group_tokens)
        projected = projected + state[f"completion_net.completion.layer_tokens.{stage}"][0]
        survivors = stage == len(groups) - 1
        positions = [0] * survivors + [1 + index for index in group]
        for position, row in zip(positions, projected, strict=True):
            rows[position] = row
    x = torch.stack([row for row in rows if row is not None])
    x = x + state["completion_net.completion.pos_embed"][0]
    for index in range(depth_of(state, "completion_net")):
        x = block(state, f"completion_net.blocks.{index}", x, num_heads)
    x = layer_norm(state, "completion_net.out_norm", x, BLOCK_EPS)
    return linear(state, "completion_net.out_linear", x)[1:]


def num_keep(num_present: int, prune_ratio: float) -> int:
    """Published count, in floating point on purpose: 1000 tokens at 0.9 keep 99, five keep none."""
    return int(num_present * (1 - prune_ratio))


def select(token_scores: Tensor, count: int) -> list[int]:
    """Return the positions of the `count` highest scores, ascending."""
    values = token_scores.tolist()
    best_first = sorted(range(len(values)), key=lambda i: values[i], reverse=True)
    return sorted(best_first[:count])


def scores(state: State, stage: int, tokens: Tensor) -> Tensor:
    """Return the log-sigmoid score (n,) of patch tokens (n, E); no token, no score."""
    if not len(tokens):
        return tokens.new_empty(0)
    name = f"encoder.score_predictor_list.{stage}"
    x = gelu(linear(state, f"{name}.in_mlp.1", layer_norm(state, f"{name}.in_mlp.0", tokens, PREDICTOR_EPS)))
    half = x.shape[1] // 2
    average = sum(row[half:] for row in x) / x.shape[0]
    x = torch.stack([torch.cat([row[:half], average]) for row in x])
    x = gelu(linear(state, f"{name}.out_mlp.0", x))
    x = gelu(linear(state, f"{name}.out_mlp.2", x))
    x = linear(state, f"{name}.out_mlp.4", x)
    return -torch.log1p(torch.exp(-x[:, 0]))


def embed(state: State, sample: Tensor, patch_size: int) -> Tensor:
    """Return class token and patch tokens (1 + L, E) of one image (C, H, W, D), positions added."""
    kernel = state["encoder.patch_embed.proj.weight"]
    bias = state["encoder.patch_embed.proj.bias"]
    h, w, d = token_grid(sample, patch_size)
    rows = [state["encoder.cls_token"][0, 0]]
    p = patch_size
    for i in range(h):
        for j in range(w):
            for k in range(d):
                cube = sample[:, i * p : (i + 1) * p, j * p : (j + 1) * p, k * p : (k + 1) * p]
                rows.append((kernel * cube).sum(dim=(1, 2, 3, 4)) + bias)
    return torch.stack(rows) + state["encoder.pos_embed"][0]


def block(state: State, name: str, x: Tensor, num_heads: int) -> Tensor:
    """One pre-norm transformer block over tokens (n, E)."""
    x = x + attention(state, f"{name}.attn", layer_norm(state, f"{name}.norm1", x, BLOCK_EPS), num_heads)
    hidden = gelu(linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", x, BLOCK_EPS)))
    return x + linear(state, f"{name}.mlp.fc2", hidden)


def attention(state: State, name: str, x: Tensor, num_heads: int) -> Tensor:
    """Self-attention over tokens (n, E); rows of `qkv` are all queries, all keys, all values."""
    width = x.shape[1]
    dim = width // num_heads
    qkv = linear(state, f"{name}.qkv", x)
    heads = []
    for head in range(num_heads):
        q = qkv[:, head * dim : (head + 1) * dim]
        k = qkv[:, width + head * dim : width + (head + 1) * dim]
        v = qkv[:, 2 * width + head * dim : 2 * width + (head + 1) * dim]
        weights = torch.softmax(q @ k.T / math.sqrt(dim), dim=1)
        heads.append(weights @ v)
    return linear(state, f"{name}.proj", torch.cat(heads, dim=1))


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """Affine map with the weights under `name`."""
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """Normalise each row of (n, E) with the biased variance."""
    centred = x - x.mean(dim=1, keepdim=True)
    variance = (centred * centred).mean(dim=1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """Exact GELU (error function, not the tanh approximation)."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def to_grid(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Return (E, h, w, d) from row-major tokens (L, E)."""
    return tokens.T.reshape(tokens.shape[1], *grid)


def token_grid(sample: Tensor, patch_size: int) -> tuple[int, int, int]:
    """Return (h, w, d) of one image (C, H, W, D)."""
    _, height, width, depth = sample.shape
    return height // patch_size, width // patch_size, depth // patch_size


def depth_of(state: State, part: str = "encoder") -> int:
    """Return the number of transformer blocks of `part`."""
    prefix = f"{part}.blocks."
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})
