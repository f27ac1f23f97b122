"""What a training step needs in memory, found without allocating it, and what a device has."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor

from sparseg.models.build import segmenter_from_config
from sparseg.models.network import NetworkConfig
from sparseg.training.losses import make_loss

# A process that trains on a CPU keeps what it frees, up to 0.55 of the estimate on top of it.
CPU_SHARE, CUDA_SHARE = 0.6, 0.85
# Interpreter and libraries on the CPU, context and kernels on a GPU: about the same.
FIXED_BYTES = 400 * 2**20
# Weights, gradients and AdamW's two averages in float32.
_BYTES_PER_PARAMETER = 16


def training_bytes(config: NetworkConfig, batch_size: int, *, regions: bool) -> int:
    """Estimate the peak of a float32 training step in bytes.

    The model runs on the meta device, where tensors have shapes but no content, and what it saves for the
    backward pass is counted. Added are weights, gradients and AdamW's averages, the two largest arrays once
    more (the gradients that are alive beside them), and a fixed sum for the libraries.

    Args:
        config: The model.
        batch_size: Crops per step.
        regions: Whether the outputs are overlapping regions.
    """
    with torch.device("meta"):
        net = segmenter_from_config(config)
    weights = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: Tensor) -> Tensor:
        # Views share a storage; holding it keeps its address from being given to another one.
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    image = torch.empty(1, config.in_channels, *config.roi_size, device="meta")
    target = torch.empty(1, config.num_classes if regions else 1, *config.roi_size, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        make_loss(regions=regions)(net(image), target)
    sizes = sorted(storage.nbytes() for address, storage in saved.items() if address not in weights)
    num_parameters = sum(parameter.numel() for parameter in net.parameters())
    return batch_size * (sum(sizes) + sum(sizes[-2:])) + num_parameters * _BYTES_PER_PARAMETER + FIXED_BYTES


def usable_bytes(device: str) -> int:
    """Memory a run may plan with: 0.6 of what is free on the CPU, 0.85 of what a GPU has.

    Args:
        device: "cpu" or "cuda".
    """
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory * CUDA_SHARE)
    return int(psutil.virtual_memory().available * CPU_SHARE)


def size_text(num_bytes: int) -> str:
    """Bytes as text in GiB, or MiB below 1 GiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
