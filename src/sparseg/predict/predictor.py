"""One volume from file to file. The page to read first: every line is one call into a lower folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import load_model, read_card
from sparseg.errors import VolumeError
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.cleanup import Cleanup, CleanupReport, clean_labels
from sparseg.predict.decide import make_decision
from sparseg.predict.label_files import LabelFiles, local_image
from sparseg.predict.reading import ReadOptions
from sparseg.predict.statistics import ConfidentDecision, LabelStatistics, measure_labels
from sparseg.predict.window_options import Mirror, empty_rule, mirror_axes
from sparseg.preprocessing.orientation import undo_reorient
from sparseg.preprocessing.pipeline import prepare
from sparseg.preprocessing.record import PreprocessRecord
from sparseg.preprocessing.restore import crop_box, model_positions
from sparseg.volumes.geometry import join_channels
from sparseg.volumes.volume import Volume
from sparseg.windows.finish import finish_labels
from sparseg.windows.mirror import mirrored
from sparseg.windows.plan import plan_windows
from sparseg.windows.sliding import sliding_window


@dataclass
class CaseResult:
    """What happened to one case.

    Attributes:
        seconds: Time per step.
        num_windows: Windows run.
        num_windows_skipped: Windows not run because they hold only background.
        volumes_ml: Volume of each label.
        statistics: All numbers of each label, background excepted, by name.
        cleanup: What clean-up changed; None if none was asked for.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    num_windows: int = 0
    num_windows_skipped: int = 0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, LabelStatistics] = field(default_factory=dict)
    cleanup: CleanupReport | None = None


@dataclass(frozen=True)
class PredictSettings:
    """How to run the windows.

    Attributes:
        overlap: Share of the roi by which windows overlap; None takes the model's own.
        batch_size: Windows per call of the network.
        device: Where the network runs.
        reading: Decisions for images that would be refused otherwise.
        files: How labels are written.
        cleanup: Components to remove and holes to fill on the original grid; none by default.
        mirror: Directions in which windows are mirrored, too, and the logits averaged: `lr`, `ap`, `si`. Each
            doubles the time; only for models trained with such flips.
        keep_empty: Run windows of pure background, too; see `empty_rule` for what that can change.
        max_bytes: Memory for the sums of the logits; larger ones lie in a temporary file. None: no limit.
    """

    overlap: float | None = None
    batch_size: int = 1
    device: str = "cpu"
    reading: ReadOptions = field(default_factory=ReadOptions)
    files: LabelFiles = field(default_factory=LabelFiles)
    cleanup: Cleanup = field(default_factory=Cleanup)
    mirror: tuple[Mirror, ...] = ()
    keep_empty: bool = False
    max_bytes: int | None = None


class Predictor:
    """A trained model ready to segment files.

    Args:
        net: The network.
        card: Its model card.
        settings: How to run it.
        name: What reports and errors call it.

    Raises:
        ConfigError: a class to clean up that the model has not, or left-right mirroring with sided labels.
    """

    def __init__(
        self,
        net: SparseUNETR,
        card: ModelCard,
        settings: PredictSettings | None = None,
        *,
        name: str = "model",
    ) -> None:
        self.settings = settings or PredictSettings()
        self.settings.cleanup.check_names(card.labels)
        self.name = name
        self.net = net.to(self.settings.device).eval()
        self.card = card
        self.overlap = card.overlap if self.settings.overlap is None else self.settings.overlap
        self._run = mirrored(self.net, mirror_axes(self.settings.mirror, card))
        self._empty = None if self.settings.keep_empty else empty_rule(card)

    @classmethod
    def from_folder(
        cls, folder: Path, settings: PredictSettings | None = None, *, name: str | None = None
    ) -> Predictor:
        """Load a model folder or a training run's best model; it is called by its path unless named.

        Raises:
            CheckpointError: not a complete, undamaged model.
        """
        return cls(load_model(folder), read_card(folder), settings, name=name or str(folder))

    @property
    def members(self) -> tuple[Predictor, ...]:
        """The models at work: this one."""
        return (self,)

    def predict_file(
        self,
        source: Path,
        output: Path,
        *,
        channels: Sequence[Path] = (),
        series_uid: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> CaseResult:
        """Segment one image into `output`, a label file on the image's own grid.

        Args:
            source: Image file, DICOM series folder, or a .zip of one series.
            output: Label file, with the suffix of the format in the settings.
            channels: Files of the other channels, where each has one of its own; on the same grid.
            series_uid: Series to take from a DICOM folder; None takes that of the settings.
            on_progress: Called after each window with (done, all).

        Raises:
            VolumeError, GeometryError: the image cannot be trusted, has other channels than the model, or
                cannot have labels of the wanted kind.
            NumericsError: the network gave a non-finite value. No output is written after any error.
        """
        result = CaseResult()
        clock = _Clock(result.seconds)
        reading, files = self.settings.reading, self.settings.files
        if series_uid is not None:
            reading = replace(reading, series_uid=series_uid)
        with local_image(source) as path:
            write = files.writer(path, reading.series_uid)
            image = join_channels([reading.read(path), *(reading.read(other) for other in channels)])
        self._require_channels(image)
        clock.lap("read")
        labels = self._segment(image, result, clock, on_progress)
        output.parent.mkdir(parents=True, exist_ok=True)
        write(output, labels, image.affine, self.card.labels)
        clock.lap("write")
        return result

    def predict_volume(
        self, image: Volume, *, on_progress: Callable[[int, int], None] | None = None
    ) -> tuple[np.ndarray, CaseResult]:
        """Segment an image `[C, H0, W0, D0]`: ids `[H0, W0, D0]` on its own grid, and what happened.

        Raises:
            VolumeError, GeometryError: the image has other channels than the model, or cannot be resampled.
            NumericsError: the network gave a non-finite value.
        """
        self._require_channels(image)
        result = CaseResult()
        return self._segment(image, result, _Clock(result.seconds), on_progress), result

    def _segment(
        self,
        image: Volume,
        result: CaseResult,
        clock: _Clock,
        on_progress: Callable[[int, int], None] | None,
    ) -> np.ndarray:
        prepared = prepare(image, self.card.preprocess)
        clock.lap("prepare")
        logits = self.predict_prepared(prepared.image, on_progress=on_progress)
        clock.lap("windows")
        decide = ConfidentDecision(self.card.labels, self.card.regions)
        labels = labels_on_original_grid(logits, prepared.record, self.card, decide=decide)
        clock.lap("finish")
        if self.settings.cleanup:
            result.cleanup = clean_labels(labels, image.affine, self.card.labels, self.settings.cleanup)
            clock.lap("cleanup")
        result.num_windows, result.num_windows_skipped = self.count_windows(prepared.image)
        result.statistics = measure_labels(
            labels, image.affine, self.card.labels, confidence=decide.mean_confidence()
        )
        result.volumes_ml = {name: found.volume_ml for name, found in result.statistics.items()}
        clock.lap("statistics")
        return labels

    def predict_prepared(
        self, image: Volume, *, on_progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Logits `[K, H, W, D]` of an image on the model grid."""
        with torch.inference_mode():
            return sliding_window(
                _as_tensor(image),
                self._run,
                self.card.model.roi_size,
                overlap=self.overlap,
                batch_size=self.settings.batch_size,
                pad_value=self.card.preprocess.background_value,
                empty=self._empty,
                device=self.settings.device,
                max_bytes=self.settings.max_bytes,
                on_progress=on_progress,
            )

    def num_windows(self, image: Volume) -> int:
        """Windows to run for an image on the model grid."""
        return self.count_windows(image)[0]

    def count_windows(self, image: Volume) -> tuple[int, int]:
        """Windows to run and windows skipped as empty, of an image on the model grid."""
        plan = plan_windows(
            _as_tensor(image),
            self.card.model.roi_size,
            self.overlap,
            pad_value=self.card.preprocess.background_value,
            empty=self._empty,
        )
        return len(plan.starts), plan.num_skipped

    def _require_channels(self, image: Volume) -> None:
        if image.num_channels != self.card.model.in_channels:
            raise VolumeError(
                f"the model takes {self.card.model.in_channels} channel(s): {', '.join(self.card.channels)}",
                received=image.num_channels,
                remedy="give an image with exactly these channels, in this order",
                where=image.source,
                code="channel-count",
            )


def labels_on_original_grid(
    logits: Tensor,
    record: PreprocessRecord,
    card: ModelCard,
    *,
    decide: Callable[[Tensor], Tensor] | None = None,
) -> np.ndarray:
    """Ids `[H0, W0, D0]` on the original grid; outside the foreground crop is 0.

    uint8, or uint16 where the model has ids above 255. `decide` is that of `make_decision` unless given.
    """
    positions = [model_positions(record, axis) for axis in range(3)]
    dtype = np.uint8 if max(card.labels) < 256 else np.uint16
    full = np.zeros(record.reoriented_shape, dtype=dtype)
    full[crop_box(record)] = finish_labels(
        logits, positions, decide or make_decision(card.labels, card.regions), dtype=dtype
    )
    return np.ascontiguousarray(undo_reorient(full[None], record.permutation, record.flips)[0])


def _as_tensor(image: Volume) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))


class _Clock:
    """Writes the seconds since the last lap into a dict."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self.last, 4)
        self.last = now
