"""A dense network that a sparse one starts from and is taught by: its weights, then its logits.

The run folder keeps the teacher as a model folder of its own, so that a run goes on wherever it lies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import CARD, load_model, save_model
from sparseg.config import parse_config
from sparseg.errors import ConfigError
from sparseg.models.config import SegmenterConfig
from sparseg.models.network import Network
from sparseg.training.distill_config import DistillConfig

FOLDER = "teacher"
# What a student may have otherwise than its teacher: the ways of pruning and what completes the grid.
_FREE = (
    *("pruning_stages", "keep_ratio", "num_keep", "scoring", "pruned_tokens", "completion"),
    *("assembly_depth", "assembly_dim", "assembly_num_heads", "score_transform", "soft_topk"),
    *("temperature", "noise_scale", "count_rule", "deep_supervision", "drop_path"),
)


def store_teacher(run_folder: Path, net: Network, card: ModelCard) -> None:
    """Keep a teacher in a run folder, before its run starts."""
    run_folder.mkdir(parents=True, exist_ok=True)
    save_model(run_folder / FOLDER, net, card)


def find_teacher(run_folder: Path, config: DistillConfig) -> Network | None:
    """The teacher of a run, in evaluation mode; None where it has none.

    Raises:
        ConfigError: distillation is asked for, and there is none.
        CheckpointError: it is damaged.
    """
    if (run_folder / FOLDER / CARD).is_file():
        return load_model(run_folder / FOLDER)
    if config.weight:
        raise ConfigError(
            "distillation needs a teacher",
            received=f"distill.weight {config.weight:g}, and no {FOLDER}/ in the run folder",
            remedy="start the run with sparseg sparsify, or set distill.weight to 0",
            where=run_folder,
            code="no-teacher",
        )
    return None


def sparse_settings(teacher: SegmenterConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Settings of the sparse network to be made of a dense one.

    By default it prunes before the blocks at a quarter, half and three quarters of the depth, by scores of
    the image.

    Args:
        teacher: The dense network's.
        changes: What is wanted otherwise.

    Raises:
        ConfigError: a dense network that prunes already, or a change that its weights do not allow.
    """
    if teacher.pruning_stages or teacher.merging != "none":
        raise ConfigError(
            "the network to be made sparse must be dense",
            received=f"pruning stages {list(teacher.pruning_stages)}, merging {teacher.merging}",
            remedy="give a model trained with model.pruning_stages=[]; "
            "a sparse one takes other keep ratios as it is: sparseg calibrate",
            code="sparsify-dense",
        )
    own, quarters = teacher.model_dump(), {max(1, teacher.depth * quarter // 4) for quarter in (1, 2, 3)}
    stages = sorted(stage for stage in quarters if stage < teacher.depth) or [0]
    wanted = {**own, "pruning_stages": stages, "keep_ratio": 0.25, "scoring": "image", **changes}
    found = parse_config(SegmenterConfig, wanted, where="model").model_dump()
    wrong = [name for name, value in found.items() if name not in _FREE and own[name] != value]
    if wrong:
        raise ConfigError(
            f"a sparse network has the sizes of the dense one; free are {', '.join(_FREE)}",
            received=", ".join(f"model.{name}" for name in wrong),
            remedy="leave them out, or train anew",
            code="sparsify-sizes",
        )
    return found


def take_over(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Give a network all weights of its teacher; what the teacher lacks starts fresh.

    Returns:
        Names of the parts that start fresh.

    Raises:
        ConfigError: a weight of the teacher that has no place.
    """
    state, own = teacher.state_dict(), student.state_dict()
    homeless = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    if homeless:
        raise ConfigError(
            "a network taught by another must have all of its weights",
            received=f"no place for {', '.join(homeless[:3])}",
            remedy="give it the sizes of its teacher",
            code="sparsify-sizes",
        )
    student.load_state_dict({**own, **state})
    fresh = (name for name in own if name not in state)
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in fresh))


class Teacher:
    """Logits to learn from, and how far a student is from them.

    Args:
        net: The network; it is not trained.
        config: Settings.
        regions: True for overlapping regions (sigmoid), False for classes (softmax).
    """

    def __init__(self, net: Network, config: DistillConfig, *, regions: bool) -> None:
        self.net = net.eval().requires_grad_(requires_grad=False)
        self.config = config
        self.regions = regions

    def loss(self, logits: Tensor | list[Tensor], image: Tensor) -> Tensor:
        """Weighted divergence of the student's finest logits from the teacher's on the same crops."""
        finest = logits if isinstance(logits, Tensor) else logits[0]
        self.net.to(image.device)
        with torch.no_grad():
            wanted = self.net(image)
        return self.config.weight * divergence(
            finest, wanted, temperature=self.config.temperature, regions=self.regions
        )


def divergence(logits: Tensor, wanted: Tensor, *, temperature: float, regions: bool) -> Tensor:
    """Kullback-Leibler divergence from softened teacher to softened student, mean over voxels, times T².

    Hinton et al. 2015, section 2; the factor keeps gradients of one size whatever the temperature T.

    Args:
        logits: `[B, K, H, W, D]` of the student.
        wanted: The same of the teacher.
        temperature: T.
        regions: True for one sigmoid per output, whose divergences are added up; False for a softmax.
    """
    logits, wanted = logits.float() / temperature, wanted.float() / temperature
    if regions:
        share = torch.sigmoid(wanted)
        cross = F.binary_cross_entropy_with_logits(logits, share, reduction="none")
        own = F.binary_cross_entropy_with_logits(wanted, share, reduction="none")
        each = cross - own
    else:
        log_wanted = F.log_softmax(wanted, dim=1)
        each = log_wanted.exp() * (log_wanted - F.log_softmax(logits, dim=1))
    return each.sum(dim=1).mean() * temperature**2
