"""One volume from file to file. The page to read first: every line is one call into a lower folder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseg.allocator import memory_reused
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import find_model, load_model, read_card
from sparseg.errors import VolumeError
from sparseg.models.network import Network
from sparseg.predict.calibration import Calibration, read_calibration
from sparseg.predict.case import CaseResult, LoadedCase, TokensKept, WindowResult
from sparseg.predict.cleanup import clean_labels
from sparseg.predict.clock import Clock
from sparseg.predict.dial import SpeedDial, require_curve, time_window
from sparseg.predict.label_files import local_image
from sparseg.predict.maps import MapRecorder, map_paths, recorder_for, removed_on_error
from sparseg.predict.outputs import write_labels
from sparseg.predict.preview import (
    Preview,
    confidence_preview,
    image_preview,
    label_preview,
    token_preview,
)
from sparseg.predict.ratios import Ratios, stage_ratios, token_counts, with_ratios
from sparseg.predict.remarks import CaseWarning, image_warnings, memory_warning
from sparseg.predict.settings import PredictSettings
from sparseg.predict.statistics import ConfidentDecision, measure_labels
from sparseg.predict.watch import NetworkWatch
from sparseg.predict.window_options import mirror_axes, skip_rules
from sparseg.preprocessing.config import CTIntensity
from sparseg.preprocessing.orientation import reorient
from sparseg.preprocessing.pipeline import prepare
from sparseg.preprocessing.record import PreprocessRecord
from sparseg.preprocessing.restore import crop_box, model_positions
from sparseg.volumes.geometry import join_channels
from sparseg.volumes.volume import Volume
from sparseg.windows.body import body_box
from sparseg.windows.finish import finish_labels
from sparseg.windows.mirror import mirrored
from sparseg.windows.plan import WindowPlan, plan_windows
from sparseg.windows.sliding import sliding_window
from sparseg.windows.storage import Storage

logger = logging.getLogger("sparseg")


class Predictor:
    """A trained model ready to segment files.

    Args:
        net: The network.
        card: Its model card.
        settings: How to run it.
        name: What reports and errors call it.
        curve: Its quality/time curve; needed for a deadline.

    Attributes:
        guard: Called with an image, its other channels and its series before it is read; may refuse it.
        expected: What the run was expected to take, for its report; None where nobody asked.

    Raises:
        ConfigError: a class to clean up that the model has not, left-right mirroring with sided labels, keep
            ratios that do not fit the model, or keep ratios together with a deadline.
        CheckpointError: a deadline without a curve.
    """

    def __init__(
        self,
        net: Network,
        card: ModelCard,
        settings: PredictSettings | None = None,
        *,
        name: str = "model",
        curve: Calibration | None = None,
    ) -> None:
        self.settings = settings or PredictSettings()
        require_curve(curve, self.settings.deadline, self.settings.keep_ratios, where=name)
        self.settings.cleanup.check_names(card.labels)
        self.name = name
        self.net = net.to(self.settings.device).eval()
        self.card = card
        self.overlap = card.overlap if self.settings.overlap is None else self.settings.overlap
        self.curve = curve
        self.guard: Callable[[Path, Sequence[Path], str | None], None] | None = None
        self.expected: dict[str, Any] | None = None
        self.keep_ratios = stage_ratios(self.net, self.settings.keep_ratios, where=name)
        self._mirror_axes = mirror_axes(self.settings.mirror, card)
        self._empty, self._body = skip_rules(
            card, keep_empty=self.settings.keep_empty, body_only=self.settings.body_only
        )

    @classmethod
    def from_folder(
        cls, folder: Path, settings: PredictSettings | None = None, *, name: str | None = None
    ) -> Predictor:
        """Load a model folder or a training run's best model; it is called by its path unless named.

        Raises:
            CheckpointError: not a complete, undamaged model; a deadline without a curve of these weights.
        """
        net, card = load_model(folder), read_card(folder)
        wants_curve = settings is not None and settings.deadline is not None
        curve = read_calibration(find_model(folder), card) if wants_curve else None
        return cls(net, card, settings, name=name or str(folder), curve=curve)

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
        case = self.load(source, channels=channels, series_uid=series_uid)
        return self.finish(case, self.run_case(case, on_progress=on_progress), output)

    def load(
        self, source: Path, *, channels: Sequence[Path] = (), series_uid: str | None = None
    ) -> LoadedCase:
        """First step of `predict_file`: read and prepare."""
        seconds: dict[str, float] = {}
        clock = Clock(seconds)
        reading, files = self.settings.reading, self.settings.files
        if series_uid is not None:
            reading = replace(reading, series_uid=series_uid)
        with local_image(source) as path:
            if self.guard is not None:
                self.guard(path, channels, reading.series_uid)
            write = files.writer(path, reading.series_uid)
            image = join_channels([reading.read(path), *(reading.read(other) for other in channels)])
        image = replace(image, source=str(source))  # an archive, not the folder it was unpacked into
        self._require_channels(image)
        warnings = tuple(image_warnings(image, self.card.channels))
        clock.lap("read")
        prepared = prepare(image, self.card.preprocess)
        previews = {"image": image_preview(image, self._grey_window)} if self.settings.previews else {}
        clock.lap("prepare")
        return LoadedCase(prepared, image.affine, write, seconds, previews, warnings)

    def run_case(
        self, case: LoadedCase, *, on_progress: Callable[[int, int], None] | None = None
    ) -> WindowResult:
        """Second step: the windows, under a deadline with the keep ratio that it leaves time for.

        Raises:
            NumericsError: the network gave a non-finite value.
        """
        image = case.prepared.image
        if self._dial is None:
            return self.run_windows(image, on_progress=on_progress)
        choice = self._dial.choose(
            [member.num_windows(image) for member in self.members],
            num_voxels=math.prod(case.prepared.record.reoriented_shape),
            spent=sum(case.seconds.values()),
        )
        found = self.run_windows(image, on_progress=on_progress, keep_ratios=choice.keep_ratios)
        return replace(found, choice=choice)

    def run_windows(
        self,
        image: Volume,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        keep_ratios: Sequence[Ratios] | None = None,
    ) -> WindowResult:
        """What the network says about an image on the model grid.

        Args:
            image: `[C, H, W, D]`, prepared.
            on_progress: Called after each batch with (windows done, all).
            keep_ratios: For each of `members` one per pruning stage, or None for what it was built with;
                without them those of the settings.

        Raises:
            NumericsError: the network gave a non-finite value.
        """
        ratios = self.keep_ratios if keep_ratios is None else keep_ratios[0]
        tensor = _as_tensor(image)
        start = time.perf_counter()
        plan = self._plan(tensor, image.spacing)
        # Memory may have run out at the case before, and the network may have gone to the CPU.
        self.net.to(self.settings.device)
        watch = NetworkWatch(self.net, image.shape if self.settings.previews else None)
        storage = Storage(self.settings.max_bytes)
        warnings: list[CaseWarning] = []

        def on_fallback(change: str) -> None:
            watch.forget()
            warnings.append(memory_warning(change))
            logger.warning("%s", change)

        with torch.inference_mode(), memory_reused(), watch:
            logits = sliding_window(
                tensor,
                self.network(ratios),
                self.card.model.roi_size,
                overlap=self.overlap,
                batch_size=self.settings.batch_size,
                pad_value=self.card.preprocess.background_value,
                empty=self._empty,
                plan=plan,
                device=self.settings.device,
                sums_device=self.settings.sums_device,
                storage=storage,
                to_cpu=self.net.cpu,
                on_fallback=on_fallback,
                on_progress=on_progress,
                on_batch=watch.place,
            )
        seconds = {"windows": time.perf_counter() - start, **watch.seconds}
        kept = TokensKept(ratios, tuple(token_counts(self.net, ratios)))
        return WindowResult(
            logits,
            len(plan.starts),
            plan.num_skipped,
            seconds,
            watch.depth,
            (kept,),
            storage=storage,
            warnings=tuple(warnings),
        )

    def finish(self, case: LoadedCase, windows: WindowResult, output: Path) -> CaseResult:
        """Last step: labels on the original grid, numbers, file. Either all of it, or no file."""
        kinds, record = self.settings.files.maps, case.prepared.record
        with recorder_for(kinds, record, self.card.labels, self.card.regions) as maps:
            labels, result = self._decide(case, windows, maps)
            clock = Clock(result.seconds)
            output.parent.mkdir(parents=True, exist_ok=True)
            with removed_on_error([output, *map_paths(output).values()] if maps else []):
                result.maps = maps.write(output, case.affine) if maps else {}
                case.write(output, labels, case.affine, self.card.labels)
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
        seconds: dict[str, float] = {}
        clock = Clock(seconds)
        prepared = prepare(image, self.card.preprocess)
        clock.lap("prepare")
        case = LoadedCase(prepared, image.affine, write_labels, seconds)
        return self._decide(case, self.run_case(case, on_progress=on_progress))

    def _decide(
        self, case: LoadedCase, windows: WindowResult, maps: MapRecorder | None = None
    ) -> tuple[np.ndarray, CaseResult]:
        result = CaseResult(dict(case.seconds), windows.num_windows, windows.num_skipped)
        result.tokens, result.choice = windows.tokens, windows.choice
        result.warnings = (*case.warnings, *windows.warnings)
        _add_window_seconds(result.seconds, windows.part_seconds)
        clock = Clock(result.seconds)
        decide = ConfidentDecision(self.card.labels, self.card.regions)
        labels = labels_on_original_grid(
            windows.logits,
            case.prepared.record,
            self.card,
            decide=decide,
            storage=windows.storage,
            slab=self.settings.finish_slab,
            on_slab=maps.on_slab if maps else None,
        )
        clock.lap("finish")
        if self.settings.cleanup:
            result.cleanup = clean_labels(labels, case.affine, self.card.labels, self.settings.cleanup)
            clock.lap("cleanup")
        result.statistics = measure_labels(
            labels, case.affine, self.card.labels, confidence=decide.mean_confidence()
        )
        result.volumes_ml = {name: found.volume_ml for name, found in result.statistics.items()}
        result.previews = self._previews(case, windows, labels) if self.settings.previews else {}
        clock.lap("statistics")
        return labels, result

    def _previews(self, case: LoadedCase, windows: WindowResult, labels: np.ndarray) -> dict[str, Preview]:
        affine = case.prepared.record.model_affine
        previews = {
            **case.previews,
            "labels": label_preview(labels, case.affine),
            "confidence": confidence_preview(
                windows.logits, affine, regions=bool(self.card.regions), storage=windows.storage
            ),
        }
        patch = self.card.model.patch_size
        if windows.depth is not None and patch is not None:
            previews["tokens"] = token_preview(windows.depth, affine, patch)
        return previews

    @property
    def _grey_window(self) -> tuple[float, float] | None:
        intensity = self.card.preprocess.intensity
        return intensity.clip if isinstance(intensity, CTIntensity) else None

    def predict_prepared(
        self, image: Volume, *, on_progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Logits `[K, H, W, D]` of an image on the model grid."""
        return self.run_windows(image, on_progress=on_progress).logits

    def num_windows(self, image: Volume) -> int:
        """Windows to run for an image on the model grid."""
        return self.count_windows(image)[0]

    def count_windows(self, image: Volume) -> tuple[int, int]:
        """Windows to run and windows skipped as empty, of an image on the model grid."""
        plan = self._plan(_as_tensor(image), image.spacing)
        return len(plan.starts), plan.num_skipped

    def network(self, keep_ratios: Ratios) -> Callable[[Tensor], Tensor]:
        """The network with these keep ratios, mirrored as the settings say: `[B, C, *roi]` -> logits."""
        return mirrored(with_ratios(self.net, keep_ratios), self._mirror_axes)

    def token_counts(self) -> list[int]:
        """Patch tokens of one window at the start and after each pruning stage, by the settings."""
        return token_counts(self.net, self.keep_ratios)

    @cached_property
    def _dial(self) -> SpeedDial | None:
        deadline = self.settings.deadline
        if deadline is None:
            return None
        curves = [member.curve for member in self.members if member.curve is not None]
        times = [member.seconds_per_window() for member in self.members]
        return SpeedDial(curves, deadline, times, device=torch.device(self.settings.device).type)

    def seconds_per_window(self) -> float:
        """Time of one window through the network as it was built, here and now; runs a few."""
        return time_window(
            self.network(None),
            self.card.model.in_channels,
            self.card.model.roi_size,
            batch_size=self.settings.batch_size,
            device=self.settings.device,
        )

    def _plan(self, image: Tensor, spacing: Sequence[float]) -> WindowPlan:
        return plan_windows(
            image,
            self.card.model.roi_size,
            self.overlap,
            pad_value=self.card.preprocess.background_value,
            empty=self._empty,
            box=None if self._body is None else body_box(image, self._body, spacing),
        )

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
    decide: ConfidentDecision | None = None,
    storage: Storage | None = None,
    slab: int = 16,
    on_slab: Callable[[int, Tensor], None] | None = None,
) -> np.ndarray:
    """Ids `[H0, W0, D0]` on the original grid; outside the foreground crop is 0.

    uint8, or uint16 where the model has ids above 255; first axis fastest in memory, as in label files.
    `decide` notes the confidence on the way, for a caller who wants to know it. `storage` made the logits;
    `slab` planes are decided at a time; `on_slab` is that of `finish_labels`.
    """
    decide = decide or ConfidentDecision(card.labels, card.regions)
    positions = [model_positions(record, axis) for axis in range(3)]
    dtype = np.uint8 if max(card.labels) < 256 else np.uint16
    labels = np.zeros(record.original_shape, dtype=dtype, order="F")
    crop = reorient(labels[None], record.permutation, record.flips)[0][crop_box(record)]
    touching = (storage or Storage()).touching
    finish_labels(
        logits,
        positions,
        touching(decide),
        background=None if decide.background is None else touching(decide.background),
        slab=slab,
        on_slab=on_slab,
        out=crop,
    )
    return labels


def _as_tensor(image: Volume) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))


def _add_window_seconds(seconds: dict[str, float], measured: Mapping[str, float]) -> None:
    """The windows' time, its parts, and as `stitch` what is none of them."""
    for name, value in measured.items():
        seconds[name] = round(value, 4)
    inside = sum(value for name, value in measured.items() if name != "windows")
    seconds["stitch"] = round(max(0.0, measured["windows"] - inside), 4)
