"""From the facts of the training cases to the settings of a run: read top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sparseg import __version__
from sparseg.config import parse_config
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.fingerprint import Fingerprint, make_fingerprint
from sparseg.errors import DatasetError
from sparseg.models.config import SegmenterConfig
from sparseg.models.network import NetworkConfig
from sparseg.planning.choice import Choice
from sparseg.planning.device import choose_precision
from sparseg.planning.estimates import Estimates, make_estimates
from sparseg.planning.grid import choose_patch, prepared_shape, target_spacing
from sparseg.planning.intensity import choose_intensity
from sparseg.planning.keep import choose_elastic_keep, choose_keep_ratio, small_classes
from sparseg.planning.measure import seconds_per_step
from sparseg.planning.memory import training_bytes, usable_bytes
from sparseg.planning.network import AS_PUBLISHED, CANDIDATES, Network, base_config, choose_network
from sparseg.planning.patches import measure_patches
from sparseg.planning.settings import (
    course_entries,
    nest,
    network_entries,
    preprocess_entries,
    selection_entries,
)
from sparseg.planning.text import listing, seal, settings_lines
from sparseg.preprocessing.config import PreprocessConfig
from sparseg.training.config import TrainConfig

_MEASURE = (8, 8, 8)


@dataclass(frozen=True)
class Plan:
    """Settings of a run, why they are so, and what the run will take.

    Attributes:
        settings: Keys of `TrainConfig`, nested; leaves are what YAML holds.
        explanations: Dotted key of a setting -> the reason for its value.
        estimates: Windows, memory, disk and time.
        warnings: What a user should look at before training.
        fingerprint: What the plan was made from.
    """

    settings: dict[str, Any]
    explanations: dict[str, str]
    estimates: Estimates
    warnings: tuple[str, ...]
    fingerprint: Fingerprint

    def config(self) -> TrainConfig:
        """The settings, validated."""
        return parse_config(TrainConfig, self.settings, where="plan")

    def to_yaml(self) -> str:
        """The text of plan.yaml; the same for the same dataset and device, apart from measured time."""
        head = [
            f"# Made by sparseg {__version__} from {self.fingerprint.num_cases} training cases,",
            f"# fingerprint {self.fingerprint.key}.",
            "# Edit what you like, then: sparseg train DATASET --config plan.yaml",
        ]
        body = settings_lines(self.settings, self.explanations)
        warnings = listing("Worth a look", self.warnings)
        return seal([*head, *body, *warnings, *listing("Estimates", self.estimates.lines())])


def make_plan(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    *,
    device: str = "cpu",
    preset: str | None = None,
    measure: bool = True,
    seed: int = 0,
    usable: int | None = None,
    fingerprint: Fingerprint | None = None,
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan a training run on a dataset.

    Args:
        dataset: With labels (`survey.with_found_labels` finds undeclared ones).
        facts: One record per case of `dataset.training`, in that order.
        device: "cpu" or "cuda": decides size and batch, and is where steps are timed.
        preset: Named model, planned around; the paper's own keep their patch, window and keep ratio. None
            chooses by memory.
        measure: Whether to time training steps.
        seed: Seed of the run.
        usable: Bytes of memory to plan for; None asks the device.
        fingerprint: Of `facts`, if it was made before.
        workers: Processes that read labels; None takes all processors.
        on_case: Called with a case's name when its labels were read.

    Raises:
        DatasetError: no training case, no labels, CT and MR channels together, or facts of other cases.
        ConfigError: unknown preset.
    """
    dataset, facts = _ordered(dataset, facts)
    fingerprint = make_fingerprint(facts) if fingerprint is None else fingerprint
    base = base_config(preset or CANDIDATES[0])
    spacing = target_spacing(fingerprint)
    intensity = choose_intensity(dataset.channels, fingerprint.channels)
    preprocess = PreprocessConfig(spacing=spacing.value, intensity=intensity.value)
    published = preset in AS_PUBLISHED
    # Of a network without patch tokens they are but the measure of how small a class is.
    base_patch = base.patch_size or _MEASURE
    patch = Choice(base_patch, "as published") if published else choose_patch(spacing.value, max(base_patch))
    shapes = [prepared_shape(case, preprocess) for case in facts]
    patches = measure_patches(
        dataset, dataset.training, facts, preprocess, patch.value, workers=workers, on_case=on_case
    )
    prunes = base.pruning_stages and not published
    keep = choose_keep_ratio(patches, len(base.pruning_stages)) if prunes else None
    elastic = choose_elastic_keep(keep.value) if keep and len(base.pruning_stages) == 1 else None
    network = choose_network(
        shapes,
        patch.value,
        _overrides(dataset, keep),
        preset=preset,
        device=device,
        limit=usable_bytes(device) if usable is None else usable,
        cost=partial(_bytes_of_a_step, regions=bool(dataset.regions), elastic=elastic),
    )
    entries = [
        *network_entries(network, patch, keep),
        *selection_entries(elastic),
        *preprocess_entries(preprocess, spacing, intensity),
        *course_entries(dataset, device, seed),
    ]
    settings = nest(entries)
    timed = measure and network.fits
    seconds = _time_step(network, dataset, device, seed) if timed else None
    return Plan(
        settings,
        {entry.key: entry.why for entry in entries},
        make_estimates(network, shapes, settings["max_steps"], seconds, device),
        (*_misfit(network, failed=timed and seconds is None), *small_classes(patches, dataset.labels)),
        fingerprint,
    )


def _ordered(dataset: Dataset, facts: Sequence[CaseFacts]) -> tuple[Dataset, list[CaseFacts]]:
    """Cases and facts in an order that no file name decides.

    Raises:
        DatasetError: no labels, or another number of facts than cases.
    """
    if not dataset.labels:
        raise DatasetError(
            "a dataset to plan for must have labels",
            received="none declared",
            remedy="declare them in sparseg.yaml, or take those of the label files (with_found_labels)",
            where=dataset.root,
            code="labels-none",
        )
    if len(facts) != len(dataset.training):
        raise DatasetError(
            "a plan needs the facts of every training case",
            received=f"{len(facts)} records for {len(dataset.training)} cases",
            remedy="give one record per training case, in their order",
            where=dataset.root,
            code="plan-cases",
        )
    keys = [case.content_key for case in facts]
    order = sorted(range(len(facts)), key=lambda number: keys[number])
    training = tuple(dataset.training[number] for number in order)
    return replace(dataset, training=training), [facts[number] for number in order]


def _overrides(dataset: Dataset, keep: Choice[float] | None) -> dict[str, Any]:
    sizes = {"in_channels": len(dataset.channels), "num_classes": dataset.num_classes}
    return sizes if keep is None else {**sizes, "keep_ratio": keep.value}


def _bytes_of_a_step(
    config: NetworkConfig, batch_size: int, *, regions: bool, elastic: Choice[tuple[float, ...]] | None
) -> int:
    """Of the step that keeps most."""
    if elastic is not None and isinstance(config, SegmenterConfig):
        config = config.model_copy(update={"keep_ratio": elastic.value[-1]})
    return training_bytes(config, batch_size, regions=regions)


def _time_step(network: Network, dataset: Dataset, device: str, seed: int) -> float | None:
    return seconds_per_step(
        network.config,
        network.batch_size,
        regions=bool(dataset.regions),
        device=device,
        precision=choose_precision(device).value,
        seed=seed,
    )


def _misfit(network: Network, *, failed: bool) -> list[str]:
    if failed:
        return ["a training step ran out of the GPU's memory: other programs may use it; lower batch_size"]
    if network.fits:
        return []
    return [f"training will probably run out of memory: {network.why_batch}"]
