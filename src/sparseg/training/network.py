"""The network of a run: built for the dataset, and wrapped for speed or memory as the settings say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparseg.datasets.dataset import Dataset
from sparseg.errors import ConfigError
from sparseg.models.build import build_segmenter
from sparseg.models.counts import require_tokens
from sparseg.models.decoders import require_window
from sparseg.models.initial import draw_by_name
from sparseg.models.network import Network
from sparseg.models.segmenter import SparseUNETR
from sparseg.training.config import TrainConfig
from sparseg.training.selection import require_trainable_scores


def make_network(dataset: Dataset, config: TrainConfig) -> Network:
    """The preset with the run's overrides, channels and outputs following the dataset.

    Its weights follow from the run's seed, part by part, so that networks of one seed have in common what
    they can.

    Raises:
        ConfigError: an override that the dataset decides, or an unknown one; a loss on scores that the
            network's scoring has no use for; stages that keep too many tokens or none.
        ShapeError: a window too small for the decoder.
    """
    for name, value in (("in_channels", len(dataset.channels)), ("num_classes", dataset.num_classes)):
        if config.model.get(name, value) != value:
            raise ConfigError(
                f"the dataset decides model.{name} ({value})",
                received=config.model[name],
                remedy="remove it from the configuration",
                where=f"model.{name}",
            )
    sizes = {"in_channels": len(dataset.channels), "num_classes": dataset.num_classes}
    net = build_segmenter(config.preset, **{**config.model, **sizes})
    require_trainable_scores(net.config, config.selection)
    if isinstance(net, SparseUNETR):
        for ratio in config.selection.elastic_keep:
            require_tokens(net.config, (ratio,) * len(net.config.pruning_stages))
        require_window(net.decoder, net.config.grid)
        draw_by_name(net, config.seed)
    return net


def average_of(net: nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving average of the weights, None with decay 0 (off)."""
    if decay == 0:
        return None
    return AveragedModel(net, multi_avg_fn=_average(decay), use_buffers=True)


def _average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Torch's update of averages; what holds no fractions, such as indices, is copied instead."""
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def average(averages: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        pairs = list(zip(averages, values, strict=True))
        fractions = [pair for pair in pairs if pair[0].is_floating_point()]
        if fractions:
            update([one for one, _ in fractions], [other for _, other in fractions], num_averaged)
        for one, other in pairs:
            if not one.is_floating_point():
                one.copy_(other)

    return average


def compile_parts(net: Network, parts: str) -> None:
    """Compile parts of a network in place: "none", its transformer "blocks", or "all" of it.

    Blocks are alike, so one compilation per number of tokens serves all of them.
    """
    if parts == "all":
        net.compile()
    elif parts == "blocks":
        for part in net.blocks():
            part.compile(dynamic=False)


def use_deterministic_algorithms() -> None:
    """Let torch refuse or replace what may differ between two runs (matters on a GPU)."""
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.backends.cudnn.benchmark = False
