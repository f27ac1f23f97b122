"""The settings of a plan in the order of its file, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.fingerprint import Numbers
from sparseg.models.peer_config import PeerConfig
from sparseg.planning.choice import Choice
from sparseg.planning.device import choose_num_workers, choose_precision
from sparseg.planning.network import Network
from sparseg.planning.schedule import choose_flips, choose_max_steps, choose_validate_every
from sparseg.preprocessing.config import CTIntensity, MRIntensity, PreprocessConfig
from sparseg.shapes import Triple


class Entry(NamedTuple):
    """Dotted key, value (None for a section) and reason of one setting."""

    key: str
    value: Any
    why: str


def network_entries(network: Network, patch: Choice[Triple], keep: Choice[float] | None) -> list[Entry]:
    """Preset, what differs from it, and batch size."""
    entries = [
        Entry("preset", network.preset, f"named model: {network.why_preset}"),
        Entry("batch_size", network.batch_size, f"crops per step: {network.why_batch}"),
        Entry("model", None, "what differs from the preset; channels and classes follow the dataset"),
        *([] if isinstance(network.config, PeerConfig) else [_patch_entry(patch)]),
        Entry("model.roi_size", list(network.config.roi_size), f"voxels of one window: {network.why_roi}"),
    ]
    if keep is not None:
        why = f"share of the tokens that stays at each pruning stage: {keep.why}"
        entries.append(Entry("model.keep_ratio", keep.value, why))
    return entries


def selection_entries(elastic: Choice[tuple[float, ...]] | None) -> list[Entry]:
    """How tokens are selected while training, where it differs from the defaults."""
    if elastic is None:
        return []
    return [
        Entry("selection", None, "how tokens are selected while training"),
        Entry("selection.elastic_keep", list(elastic.value), elastic.why),
    ]


def _patch_entry(patch: Choice[Triple]) -> Entry:
    return Entry("model.patch_size", list(patch.value), f"voxels of one token: {patch.why}")


def preprocess_entries(
    settings: PreprocessConfig, spacing: Choice[Numbers], intensity: Choice[CTIntensity | MRIntensity]
) -> list[Entry]:
    """Model grid, crop and intensity."""
    crop = "above -500 HU" if isinstance(settings.intensity, CTIntensity) else "not 0"
    entries = [
        Entry("preprocess", None, "how images become the network's input; fixed once a model is trained"),
        Entry("preprocess.spacing", list(spacing.value), f"mm, right-left first: {spacing.why}"),
        Entry("preprocess.foreground_crop", settings.foreground_crop, f"cut to the box of what is {crop}"),
        Entry("preprocess.margin_mm", settings.margin_mm, "kept around that box"),
        Entry("preprocess.intensity", None, intensity.why),
        Entry("preprocess.intensity.kind", settings.intensity.kind, "ct: clip; mr: mean 0, deviation 1"),
    ]
    if isinstance(settings.intensity, CTIntensity):
        clip = list(settings.intensity.clip)
        entries.append(Entry("preprocess.intensity.clip", clip, "HU that become -1 and 1"))
    return entries


def course_entries(dataset: Dataset, device: str, seed: int) -> list[Entry]:
    """Augmentation, length of the run, use of the device, and seed."""
    precision, workers = choose_precision(device), choose_num_workers(device)
    flips = choose_flips([*dataset.labels.values(), *dataset.regions])
    steps = choose_max_steps(len(dataset.training))
    every = choose_validate_every(steps.value)
    return [
        Entry("augment", None, "random changes to crops; what is not listed keeps its default"),
        Entry("augment.flip", list(flips.value), f"probability of mirroring per axis: {flips.why}"),
        Entry("max_steps", steps.value, f"optimiser steps: {steps.why}"),
        Entry("validate_every", every.value, f"steps between validations: {every.why}"),
        Entry("precision", precision.value, precision.why),
        Entry("num_workers", workers.value, f"processes that cut and augment crops: {workers.why}"),
        Entry("seed", seed, "fixes first weights, crops and noise"),
    ]


def nest(entries: Iterable[Entry]) -> dict[str, Any]:
    """Nested mappings out of dotted keys, in order."""
    result: dict[str, Any] = {}
    for key, value, _ in entries:
        *parents, last = key.split(".")
        target = result
        for parent in parents:
            target = target[parent]
        target[last] = {} if value is None else value
    return result
