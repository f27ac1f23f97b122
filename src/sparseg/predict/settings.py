"""How a predictor runs: one frozen record, the same for every case of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparseg.predict.cleanup import Cleanup
from sparseg.predict.label_files import LabelFiles
from sparseg.predict.ratios import Ratios
from sparseg.predict.reading import ReadOptions
from sparseg.predict.window_options import Mirror


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
        body_only: Lay the windows over the box of the body only, CT; what lies outside, such as the table, is
            background. See `body_rule`.
        max_bytes: Memory for the sums of the logits; larger ones lie in a temporary file. None: no limit.
        sums_device: Where the sums of the logits lie: the CPU, or the device if it has room for them.
        finish_slab: Planes of the original grid that are decided at a time.
        previews: Keep small volumes of image, labels, tokens and confidence for the report.
        keep_ratios: Share of the tokens that stays at a pruning stage, one for all stages or one per stage;
            None takes what the model was built with.
        deadline: Seconds for a case from file to file; per case the keep ratio of best Dice that fits is
            taken from the model's own curve (`sparseg calibrate`), the fastest where none fits.
        overlap_cases: While the network works on a case, read the next one and finish the one before; off
            holds one case in memory at a time. None: with a GPU only; on a CPU all take the same threads,
            and 6 % of the time was lost (benchmarks/2026-11-22-overlap-cases.json).
    """

    overlap: float | None = None
    batch_size: int = 1
    device: str = "cpu"
    reading: ReadOptions = field(default_factory=ReadOptions)
    files: LabelFiles = field(default_factory=LabelFiles)
    cleanup: Cleanup = field(default_factory=Cleanup)
    mirror: tuple[Mirror, ...] = ()
    keep_empty: bool = False
    body_only: bool = False
    max_bytes: int | None = None
    sums_device: str = "cpu"
    finish_slab: int = 16
    previews: bool = False
    keep_ratios: Ratios = None
    deadline: float | None = None
    overlap_cases: bool | None = None

    @property
    def cases_overlap(self) -> bool:
        """Whether cases overlap."""
        return not self.device.startswith("cpu") if self.overlap_cases is None else self.overlap_cases
