"""`PeerNet`: a network of MONAI that trains, predicts and is measured like ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparseg.config import parse_config
from sparseg.errors import ShapeError
from sparseg.models.network import Network
from sparseg.models.peer_config import PeerConfig

_MLP_RATIO = 4  # of ViT


class PeerNet(Network):
    """A network of MONAI; deep supervision, where it has one, is off.

    Args:
        **options: Fields of `PeerConfig`.

    Attributes:
        net: MONAI's network, without modules that its forward pass never calls or that are registered twice.
        recompute: Whether the blocks' activations are computed again in the backward pass.

    Raises:
        ConfigError: a setting is unknown, out of range, or not one of this network.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.config: PeerConfig = parse_config(PeerConfig, options, where="PeerNet")
        self.net: nn.Module = _BUILDERS[self.config.network](self.config)
        self.recompute = False

    def token_counts(
        self,
        size: Sequence[int] | None = None,
        keep_ratios: tuple[float, ...] | None = None,  # noqa: ARG002
    ) -> list[int]:
        """Patch tokens of a window; see `PeerConfig.token_counts`."""
        return self.config.token_counts(size)

    @property
    def encoder(self) -> nn.Module | None:
        """The transformer at its front; None for a network of convolutions only."""
        return next((part for name, part in self.net.named_children() if name in ("vit", "swinViT")), None)

    def parts(self) -> dict[str, nn.Module | None]:
        """All of it is `decode`."""
        return {"encode": None, "assemble": None, "decode": self.net}

    def blocks(self) -> list[nn.Module]:
        """Transformer and convolution blocks, none of which lies in another."""
        kinds = _block_kinds()
        return [part for part in self.net.modules() if isinstance(part, kinds)]

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """See `Network`."""
        self.recompute = enabled

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W, D] -> logits [B, K, H, W, D].

        Raises:
            ShapeError: wrong channel count, edges that are no multiples of the network's step, or for
                `unetr16` other edges than the roi, which its position table is made for.
        """
        self._require_fit(image)
        with _recomputed(self.blocks() if self.recompute and self.training else []):
            logits: Tensor = self.net(image)
        return logits

    def _require_fit(self, image: Tensor) -> None:
        config, edges = self.config, tuple(image.shape[2:])
        if image.ndim != 5 or image.shape[1] != config.in_channels:
            raise ShapeError(
                f"the network takes [B, {config.in_channels}, H, W, D]",
                received=tuple(image.shape),
                remedy="give as many channels as the model was built for",
            )
        fixed = config.network == "unetr16"
        if edges != config.roi_size if fixed else any(edge % config.window_step for edge in edges):
            size = (
                f"be {config.roi_size}" if fixed else f"have edges that are multiples of {config.window_step}"
            )
            raise ShapeError(
                f"windows of {config.network} must {size}",
                received=edges,
                remedy="pad or crop the image, or choose another roi_size",
            )


@contextmanager
def _recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within, the blocks keep their inputs only, and run again in the backward pass.

    For the time of one call: a changed `forward` would be copied with the network, and go on running the
    weights of the one that it was taken from.
    """
    for block in blocks:
        # A name of the instance hides the method; it is no parameter, buffer or module.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def fuse_attention(net: nn.Module) -> int:
    """Switch MONAI's attention blocks to the fused kernel, which its UNETR does not offer to callers.

    Returns:
        How many blocks were switched.
    """
    from monai.networks.blocks.selfattention import SABlock

    blocks = [part for part in net.modules() if isinstance(part, SABlock)]
    for block in blocks:
        block.use_flash_attention = True
    return len(blocks)


def _unetr16(config: PeerConfig) -> nn.Module:
    from monai.networks.nets import UNETR

    assert config.embed_dim is not None  # checked with the settings
    net = UNETR(
        in_channels=config.in_channels,
        out_channels=config.num_classes,
        img_size=config.roi_size,
        feature_size=config.feature_size,
        hidden_size=config.embed_dim,
        mlp_dim=_MLP_RATIO * config.embed_dim,
        num_heads=config.num_heads,
    )
    fuse_attention(net)
    for block in net.vit.blocks:
        # Of cross-attention, which UNETR has not; weights without gradients stop a run of several processes.
        del block.norm_cross_attn
    return _module(net)


def _swin_unetr(config: PeerConfig) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    # It reads drop rates from a tensor while it is built, which the meta device has no values for.
    with torch.device("cpu"):
        net = SwinUNETR(
            in_channels=config.in_channels,
            out_channels=config.num_classes,
            feature_size=config.feature_size,
            dropout_path_rate=config.drop_path,
            # MONAI's fused kernel works where no gradient is asked for; training attends step by step.
            use_flash_attention=True,
        )
    return _module(net.to(torch.get_default_device()))


def _segresnet(config: PeerConfig) -> nn.Module:
    from monai.networks.nets import SegResNet

    return _module(
        SegResNet(
            in_channels=config.in_channels,
            out_channels=config.num_classes,
            init_filters=config.feature_size,
            blocks_down=(1, 2, 2, 4),
            blocks_up=(1, 1, 1),
        )
    )


def _dynunet(config: PeerConfig) -> nn.Module:
    from monai.networks.nets import DynUNet

    assert config.num_levels is not None  # checked with the settings
    strides = [1] + [2] * (config.num_levels - 1)
    net = DynUNet(
        spatial_dims=3,
        in_channels=config.in_channels,
        out_channels=config.num_classes,
        kernel_size=[3] * config.num_levels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        # nnU-Net doubles 32 up to 320.
        filters=[config.feature_size * min(2**level, 10) for level in range(config.num_levels)],
    )
    # The same modules are in `skip_layers`, by which alone the network runs; stored twice they would be.
    for name in ("input_block", "downsamples", "bottleneck", "upsamples"):
        delattr(net, name)
    return _module(net)


def _mednext_s(config: PeerConfig) -> nn.Module:
    from monai.networks.nets.mednext import MedNeXt

    # Table 1 of the paper, size S: two blocks per level, expansion 2 everywhere; kernel 3.
    return _module(
        MedNeXt(
            in_channels=config.in_channels,
            out_channels=config.num_classes,
            init_filters=config.feature_size,
            kernel_size=3,
            use_residual_connection=True,
        )
    )


_BUILDERS = {
    "unetr16": _unetr16,
    "swin_unetr": _swin_unetr,
    "segresnet": _segresnet,
    "dynunet": _dynunet,
    "mednext_s": _mednext_s,
}


def _block_kinds() -> tuple[type[nn.Module], ...]:
    from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
    from monai.networks.blocks.mednext_block import MedNeXtBlock
    from monai.networks.blocks.segresnet_block import ResBlock
    from monai.networks.blocks.transformerblock import TransformerBlock
    from monai.networks.nets.swin_unetr import SwinTransformerBlock

    return (TransformerBlock, SwinTransformerBlock, UnetResBlock, UnetBasicBlock, MedNeXtBlock, ResBlock)


def _module(net: Any) -> nn.Module:
    """MONAI has no types."""
    assert isinstance(net, nn.Module)
    return net
