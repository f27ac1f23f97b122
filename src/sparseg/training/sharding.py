"""FSDP2: weights, gradients and optimiser state of a network shared out among the processes.

States and models are stored whole, so that runs of any number of processes and either strategy read them.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sparseg.errors import ConfigError
from sparseg.models.build import segmenter_from_config
from sparseg.models.network import Network
from sparseg.training.config import TrainConfig


def require_shardable(config: TrainConfig) -> None:
    """Refuse settings that strategy fsdp does not go with.

    Raises:
        ConfigError: averaged weights, or fp16.
    """
    if config.strategy == "fsdp" and (config.ema_decay > 0 or config.precision == "fp16"):
        raise ConfigError(
            "strategy fsdp goes with fp32 or bf16 and without averaged weights",
            received=f"precision {config.precision}, ema_decay {config.ema_decay:g}",
            remedy="set strategy: ddp, or precision: bf16 and ema_decay: 0",
            where="strategy",
        )


def shard(net: Network, device: torch.device, world: int) -> None:
    """Share out the parameters of a network in place: block by block, then what is left.

    Every process must hold the same weights before.
    """
    # Of the outputs only the logits are differentiated, and nothing is changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world,))
    net.to(device)
    for part in net.blocks():
        fully_shard(part, mesh=mesh)
    fully_shard(net, mesh=mesh)


def is_sharded(net: nn.Module) -> bool:
    """Whether the parameters of a network are shared out."""
    return any(isinstance(parameter, DTensor) for parameter in net.parameters())


def whole(state: Any, *, keep: bool = True) -> Any:
    """A state dict with every shared-out tensor put together, on the CPU.

    All processes must call it together, with states of the same structure.

    Args:
        state: Tensors in dicts, lists and tuples.
        keep: False hands back None in place of tensors that were shared out: only one process needs them.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {key: whole(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value, keep=keep) for value in state)
    return state


def whole_network(net: Network, device: torch.device) -> Network:
    """A network like `net` with all of its weights in each process, for what processes do on their own."""
    copy = segmenter_from_config(net.config)
    copy.load_state_dict(whole(net.state_dict()))
    return copy.to(device).eval()


def load_weights(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load whole tensors, each process its share; names and shapes must be those of the network."""
    own = net.state_dict()
    net.load_state_dict({name: _shared_as(own[name], value) for name, value in weights.items()})


def share_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A stored optimiser state of whole tensors as `optimizer.load_state_dict` takes it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    of_number = dict(zip(numbers, parameters, strict=True))
    shared = {
        number: {name: _shared_as(of_number[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": shared}


def _shared_as(like: Tensor, value: Any) -> Any:
    """The tensor shared out as `like` is, if it has its shape (the step count of Adam is a number)."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
