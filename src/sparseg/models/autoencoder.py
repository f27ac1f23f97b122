"""Masked autoencoder: the segmenter's encoder learns from images without labels.

After SelfMedMAE (Zhou et al., ISBI 2023): most patches are hidden, the encoder sees only the others, and a
light decoder has to say what the hidden ones look like. Here v is the number of visible patches, P = C · the
voxels of one patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.config import Config
from sparseg.errors import ShapeError
from sparseg.layers.block import Block
from sparseg.layers.position import resize_position, sine_cosine_position
from sparseg.layers.rotary import take_places
from sparseg.models.config import SegmenterConfig
from sparseg.models.encoder import SparseEncoder
from sparseg.shapes import Triple, num_tokens, token_grid
from sparseg.tokens.select import num_keep

_HEAD_WIDTH = 32
_TARGET_EPS = 1e-6
# What decides the encoder's weights; pruning, assembly and decoder belong to the segmenter.
_ENCODER_FIELDS = (
    *("in_channels", "roi_size", "patch_size", "embed_dim", "depth", "num_heads"),
    *("block", "mlp_ratio", "qkv_bias", "class_token", "norm_eps", "drop_path"),
)


class AutoencoderConfig(Config):
    """What a masked autoencoder has besides its encoder.

    Attributes:
        mask_ratio: Share of the patches that are hidden.
        target: What is predicted: `normalized` takes each patch at mean 0, deviation 1 (structure rather
            than brightness), `pixels` as it is.
        loss_on: Patches whose error counts: `masked` or `all`.
        decoder_dim: Width of the decoder; None takes half of the encoder's.
        decoder_depth: Its transformer blocks.
        decoder_num_heads: Its heads; None takes about one per 32 channels.
    """

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    target: Literal["normalized", "pixels"] = "normalized"
    loss_on: Literal["masked", "all"] = "masked"
    decoder_dim: int | None = Field(default=None, ge=6)
    decoder_depth: int = Field(default=4, ge=1)
    decoder_num_heads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        dim, heads = self.decoder_dim, self.decoder_num_heads
        if dim is not None and heads is not None and dim % heads:
            raise ValueError(f"the width {dim} must be a multiple of the number of heads {heads}")
        return self

    def decoder_sizes(self, embed_dim: int) -> tuple[int, int]:
        """Width and heads of the decoder behind an encoder of width `embed_dim`."""
        dim = self.decoder_dim or max(6, embed_dim // 2)
        most = self.decoder_num_heads or max(1, dim // _HEAD_WIDTH)
        return dim, max(heads for heads in range(1, most + 1) if dim % heads == 0)


class AutoencoderOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        loss: Mean squared error over the patches that count, a scalar.
        prediction: `[B, L, P]`, every patch, in the units of the target.
        mask: `[B, L]` bool, True where a patch was hidden.
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor


class MaskedAutoencoder(nn.Module):
    """An encoder named as in `SparseUNETR` (`encoder.*`), without pruning, and a light decoder.

    Args:
        config: Of the segmenter that is to take the encoder; `num_classes`, pruning and decoder are not used.
        settings: Mask, target and decoder.
    """

    def __init__(self, config: SegmenterConfig, settings: AutoencoderConfig | None = None) -> None:
        super().__init__()
        settings = settings or AutoencoderConfig()
        self.config = encoder_config(config)
        self.settings = settings
        self.encoder = SparseEncoder(self.config)
        dim, heads = settings.decoder_sizes(config.embed_dim)
        self.decoder_embed = nn.Linear(config.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio=config.mlp_ratio, norm_eps=config.norm_eps)
            for _ in range(settings.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(dim, config.in_channels * prod(config.patch_size))
        self._init_weights()

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> AutoencoderOutput:
        """Hide patches, encode the others, predict all.

        Args:
            image: `[B, C, H, W, D]`, prepared as for the segmenter.
            generator: Of the random masks, on the CPU; None takes torch's own.

        Raises:
            ShapeError: wrong channel count, an edge that is no multiple of the patch edge, or one patch only.
        """
        grid = self._grid_of(image)
        visible, mask = random_mask(image.shape[0], num_tokens(grid), self.settings.mask_ratio, generator)
        visible, mask = visible.to(image.device), mask.to(image.device)
        prediction = self.decode(self.encode(image, visible), visible, grid)
        target = patchify(image, self.config.patch_size).float()
        if self.settings.target == "normalized":
            target = normalize_patches(target)[0]
        counted = mask if self.settings.loss_on == "masked" else torch.ones_like(mask)
        return AutoencoderOutput(masked_error(prediction.float(), target, counted), prediction, mask)

    def encode(self, image: Tensor, visible: Tensor) -> Tensor:
        """Run the encoder on the visible patches alone.

        Args:
            image: `[B, C, H, W, D]`.
            visible: `[B, v]` grid positions, ascending.

        Returns:
            `[B, v, E]` after the final norm, a class token in front where the encoder has one.
        """
        encoder = self.encoder
        grid = token_grid(image.shape[2:], self.config.patch_size)
        offset = 0 if encoder.cls_token is None else 1
        position = resize_position(encoder.pos_embed[:, offset:], self.config.grid, grid)
        x = _take(encoder.patch_embed(image) + position, visible)
        if encoder.cls_token is not None:
            class_token = encoder.cls_token + encoder.pos_embed[:, :1]
            x = torch.cat((class_token.expand(x.shape[0], -1, -1).to(x.dtype), x), dim=1)
        rotary = encoder.rotary_places(grid)
        places = None if rotary is None else take_places(rotary, visible, before=offset)
        for block in encoder.blocks:
            x = block(x, places=places)
        result: Tensor = encoder.norm(x)
        return result

    def decode(self, encoded: Tensor, visible: Tensor, grid: Triple) -> Tensor:
        """Predict every patch.

        Args:
            encoded: From `encode`.
            visible: `[B, v]` grid positions of its patch tokens.
            grid: Token grid (h, w, d).

        Returns:
            `[B, L, P]`.
        """
        x: Tensor = self.decoder_embed(encoded)
        num_extra = encoded.shape[1] - visible.shape[1]
        tokens = self.mask_token.to(x.dtype).expand(x.shape[0], num_tokens(grid), -1)
        index = visible.unsqueeze(2).expand(-1, -1, x.shape[2])
        tokens = tokens.scatter(1, index, x[:, num_extra:])
        tokens = tokens + sine_cosine_position(grid, x.shape[2]).to(x)
        x = torch.cat((x[:, :num_extra], tokens), dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        prediction: Tensor = self.decoder_pred(self.decoder_norm(x[:, num_extra:]))
        return prediction

    def reconstruct(self, image: Tensor, output: AutoencoderOutput) -> Tensor:
        """The image `[B, C, H, W, D]` with its hidden patches as predicted, in the units of the image.

        A normalised prediction has no brightness of its own and takes mean and deviation of the true patch.
        """
        grid = self._grid_of(image)
        patches = patchify(image, self.config.patch_size).float()
        predicted = output.prediction.float()
        if self.settings.target == "normalized":
            _, mean, deviation = normalize_patches(patches)
            predicted = predicted * deviation + mean
        mixed = torch.where(output.mask.unsqueeze(2), predicted, patches)
        return unpatchify(mixed, grid, self.config.patch_size)

    def _grid_of(self, image: Tensor) -> Triple:
        if image.ndim != 5 or image.shape[1] != self.config.in_channels:
            raise ShapeError(
                f"the autoencoder takes [B, {self.config.in_channels}, H, W, D]",
                received=tuple(image.shape),
                remedy="give as many channels as the model was built for",
            )
        return token_grid(image.shape[2:], self.config.patch_size)

    def _init_weights(self) -> None:
        """Truncated normal (0.02) for Linear layers and tokens, zero biases, as in the segmenter."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        for token in (self.mask_token, self.encoder.cls_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)


def encoder_config(config: SegmenterConfig) -> SegmenterConfig:
    """The settings of the same encoder without token pruning."""
    sizes = {name: getattr(config, name) for name in _ENCODER_FIELDS}
    return SegmenterConfig(**sizes, pruning_stages=(), keep_ratio=1.0, feature_size=config.feature_size)


def random_mask(
    batch: int, length: int, mask_ratio: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the visible patches of each sample, every choice equally likely.

    Args:
        batch: Samples B.
        length: Patches L of each.
        mask_ratio: Share that is hidden; at least one patch is hidden and one stays visible.
        generator: On the CPU; None takes torch's own.

    Returns:
        Visible positions `[B, v]` ascending, and the mask `[B, L]` bool, True where hidden.

    Raises:
        ShapeError: fewer than two patches.
    """
    if length < 2:
        raise ShapeError(
            "a window must have at least two patches, one to see and one to predict",
            received=length,
            remedy="raise model.roi_size or lower model.patch_size",
            code="mask-length",
        )
    num_visible = length - min(length - 1, num_keep(length, mask_ratio))
    order = torch.rand(batch, length, generator=generator).argsort(dim=1)
    visible = order[:, :num_visible].sort(dim=1).values
    mask = torch.ones(batch, length, dtype=torch.bool).scatter(1, visible, False)
    return visible, mask


def patchify(image: Tensor, patch_size: Triple) -> Tensor:
    """Cut `[B, C, H, W, D]` into `[B, L, P]`: patches row-major over the grid, voxels row-major within.

    Channels come last.
    """
    batch, channels = image.shape[:2]
    h, w, d = token_grid(image.shape[2:], patch_size)
    a, b, c = patch_size
    cubes = image.reshape(batch, channels, h, a, w, b, d, c).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return cubes.reshape(batch, h * w * d, a * b * c * channels)


def unpatchify(patches: Tensor, grid: Triple, patch_size: Sequence[int]) -> Tensor:
    """The reverse of `patchify`: `[B, L, P]` -> `[B, C, H, W, D]`."""
    (h, w, d), (a, b, c) = grid, patch_size
    cubes = patches.reshape(patches.shape[0], h, w, d, a, b, c, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return cubes.reshape(patches.shape[0], -1, h * a, w * b, d * c)


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bring every patch to mean 0, deviation 1; a constant one becomes 0.

    Returns:
        The patches `[B, L, P]`, and mean and deviation `[B, L, 1]`.
    """
    mean = patches.mean(dim=2, keepdim=True)
    deviation = (patches.var(dim=2, keepdim=True, correction=0) + _TARGET_EPS).sqrt()
    return (patches - mean) / deviation, mean, deviation


def masked_error(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error over the patches of `counted` `[B, L]` bool; the others are `[B, L, P]`."""
    each = F.mse_loss(prediction, target, reduction="none").mean(dim=2)
    return (each * counted).sum() / counted.sum()


def _take(tokens: Tensor, positions: Tensor) -> Tensor:
    """[B, L, E], [B, v] -> [B, v, E]."""
    return tokens.gather(1, positions.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
