"""The model card of a run: what its network was trained on, and how well it did."""

from __future__ import annotations

from sparseg.checkpoints.card import ModelCard, Provenance
from sparseg.datasets.dataset import Dataset
from sparseg.models.network import NetworkConfig
from sparseg.training.config import TrainConfig
from sparseg.training.data import TrainingData
from sparseg.training.state import Progress


def make_card(
    dataset: Dataset,
    data: TrainingData,
    config: TrainConfig,
    model: NetworkConfig,
    progress: Progress,
    validation_dice: float,
) -> ModelCard:
    """Describe the network at this step; holds no case names and no paths."""
    return ModelCard(
        model=model,
        preprocess=data.preprocess,
        channels=dataset.channels,
        labels=dataset.labels,
        regions=dataset.regions,
        overlap=config.overlap,
        provenance=Provenance(
            dataset=dataset.name,
            num_training_cases=len(data.training),
            steps=progress.step,
            seed=config.seed,
            minutes=round(progress.minutes, 2),
            validation_dice=validation_dice,
            note=config.provenance,
            versions=_versions(),
        ),
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("sparseg", "torch", "monai")}
