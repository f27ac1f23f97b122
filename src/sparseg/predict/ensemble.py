"""Several models as one: the mean of their probabilities on the model grid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import find_model
from sparseg.datasets.splits import read_splits
from sparseg.errors import CheckpointError
from sparseg.predict.case import WindowResult
from sparseg.predict.predictor import Predictor
from sparseg.predict.ratios import Ratios
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.volume import Volume
from sparseg.windows.storage import Storage

_FOLD = re.compile(r"fold_(\d+)")
_SLAB = 4
_FLOAT_BYTES = 4
_NOTHING = torch.empty(0)  # what is left of a model's logits once they are in the mean


class Ensemble(Predictor):
    """Models that agree on preprocessing and labels, ready to segment files as one.

    Args:
        members: Two or more; the first one's card stands for what all share.

    Raises:
        CheckpointError: models that differ in more than the network.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        first = members[0]
        for member in members[1:]:
            _require_alike(first.card, member.card, first.name, member.name)
        super().__init__(first.net, first.card, first.settings, name=first.name, curve=first.curve)
        self._members = tuple(members)

    @property
    def members(self) -> tuple[Predictor, ...]:
        """The models, in the order given."""
        return self._members

    def run_windows(
        self,
        image: Volume,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        keep_ratios: Sequence[Ratios] | None = None,
    ) -> WindowResult:
        """Logits of the mean probabilities; seconds and windows of all models, the tokens of the first.

        They are held twice, however many models there are: the sum, and those of the model at work.
        """
        total = self.num_windows(image)
        storage = Storage(self.settings.max_bytes)
        mean = MeanProbabilities(regions=bool(self.card.regions), storage=storage)
        results: list[WindowResult] = []
        for number, member in enumerate(self._members):
            before = sum(result.num_windows for result in results)
            result = member.run_windows(
                image,
                on_progress=_after(before, total, on_progress),
                keep_ratios=None if keep_ratios is None else keep_ratios[number : number + 1],
            )
            mean.add(result.logits, result.storage)
            results.append(replace(result, logits=_NOTHING))
            del result  # and with it, before the next model runs, the logits
        seconds: Counter[str] = Counter()
        for result in results:
            seconds.update(result.part_seconds)
        return WindowResult(
            mean.logits(),
            sum(result.num_windows for result in results),
            sum(result.num_skipped for result in results),
            dict(seconds),
            results[0].depth,
            tuple(kept for result in results for kept in result.tokens),
            storage=storage,
            warnings=tuple(dict.fromkeys(found for result in results for found in result.warnings)),
        )

    def count_windows(self, image: Volume) -> tuple[int, int]:
        """Windows to run and windows skipped as empty, over all models."""
        counts = [member.count_windows(image) for member in self._members]
        return sum(run for run, _ in counts), sum(skipped for _, skipped in counts)


class MeanProbabilities:
    """Sums up probabilities as logarithms, which neither underflow nor change the decision of equal models.

    Args:
        regions: One sigmoid per channel; otherwise a softmax over the channels.
        storage: Makes the sums; None makes them in memory.
    """

    def __init__(self, *, regions: bool, storage: Storage | None = None) -> None:
        self.regions = regions
        self._storage = storage or Storage()
        self.count = 0
        self._sums: list[Tensor] = []

    def add(self, logits: Tensor, storage: Storage | None = None) -> None:
        """Take in the logits `[K, H, W, D]` of one model, made by `storage`; they may be overwritten."""
        self.count += 1
        if self.count == 1:
            self._sums = [self._storage.zeros(logits.shape) for _ in range(2 if self.regions else 1)]
        # Slab by slab, so that the logarithms never exist for the whole volume; along the first axis, where a
        # slab in a file lies in one piece per channel.
        for part in self._slabs(logits):
            if storage is not None:
                storage.touch(_FLOAT_BYTES * logits[:, part].numel())
            for sums, value in zip(self._sums, self._logarithms(logits[:, part]), strict=True):
                sums[:, part] = value if self.count == 1 else torch.logaddexp(sums[:, part], value)

    def logits(self) -> Tensor:
        """Logits `[K, H, W, D]` whose softmax, or sigmoid for regions, is the mean of the probabilities."""
        if not self.regions:
            return self._sums[0]  # the number of models is the same for all classes and changes no softmax
        present, absent = self._sums
        for part in self._slabs(present):
            present[:, part].sub_(absent[:, part])
        return present

    def _slabs(self, logits: Tensor) -> Iterator[slice]:
        for start in range(0, logits.shape[1], _SLAB):
            part = slice(start, start + _SLAB)
            self._storage.touch(_FLOAT_BYTES * len(self._sums) * logits[:, part].numel())
            yield part

    def _logarithms(self, logits: Tensor) -> tuple[Tensor, ...]:
        if self.regions:
            return F.logsigmoid(logits), F.logsigmoid(-logits)
        return (F.log_softmax(logits, dim=0),)


def load_predictor(folders: Sequence[Path], settings: PredictSettings | None = None) -> Predictor:
    """Load the models of all folders: one alone, several as an ensemble.

    Args:
        folders: Model folders, training runs, or cross-validations (all folds).
        settings: How to run the windows.

    Raises:
        CheckpointError: no model there, a damaged one, one twice, or models that do not go together.
    """
    named = [(model, _shown(model, folder)) for folder in folders for model in find_models(folder)]
    models = [model for model, _ in named]
    doubled = [name for model, name in named if models.count(model) > 1]
    if doubled:
        raise CheckpointError(
            "a model may be in an ensemble once",
            received="twice the same",
            remedy="give every --model once",
            where=doubled[0],
            code="ensemble-twice",
        )
    members = [Predictor.from_folder(model, settings, name=name) for model, name in named]
    return members[0] if len(members) == 1 else Ensemble(members)


def find_models(folder: Path) -> list[Path]:
    """The models meant by `folder`: those of all folds of a cross-validation, else the one of `find_model`.

    Raises:
        CheckpointError: no model there, or a fold without one.
    """
    folds = fold_folders(folder)
    if not folds:
        return [find_model(folder)]
    splits = folder / "splits.json"
    wanted = len(read_splits(splits).folds) if splits.is_file() else max(folds) + 1
    missing = [number for number in range(wanted) if number not in folds]
    if missing:
        raise CheckpointError(
            "every fold of a cross-validation must have a model",
            received=f"no fold {', '.join(map(str, missing))}",
            remedy="finish it with `sparseg cv`, or give the folders of single folds",
            where=folder,
            code="ensemble-incomplete",
        )
    return [find_model(folds[number]) for number in range(wanted)]


def fold_folders(folder: Path) -> dict[int, Path]:
    """Fold number -> its run folder, for the folders called `fold_<number>` in a cross-validation."""
    if not folder.is_dir():
        return {}
    named = ((_FOLD.fullmatch(child.name), child) for child in folder.iterdir() if child.is_dir())
    return {int(match[1]): child for match, child in sorted(named, key=lambda item: item[1]) if match}


def _shown(model: Path, folder: Path) -> str:
    """The model's path as seen from where the user named its folder."""
    root = folder.absolute()
    return str(folder / model.relative_to(root)) if model.is_relative_to(root) else str(folder)


def _require_alike(first: ModelCard, other: ModelCard, name: str, other_name: str) -> None:
    for part in ("preprocess", "channels", "labels", "regions"):
        if getattr(first, part) != getattr(other, part):
            raise CheckpointError(
                f"models of an ensemble must have the same {part}",
                received=f"{getattr(first, part)} in {name}, {getattr(other, part)} in {other_name}",
                remedy="predict with each model by itself, or give models that were trained alike",
                where=other_name,
                code="ensemble-differs",
            )


def _after(
    done: int, total: int, on_progress: Callable[[int, int], None] | None
) -> Callable[[int, int], None] | None:
    """Count on from the windows of the models before."""
    if on_progress is None:
        return None
    return lambda now, _: on_progress(done + now, total)
