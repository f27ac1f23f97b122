"""Runs of many tiny cases in a folder, with a monitor that notes what happened."""

from __future__ import annotations

import json
from pathlib import Path

from sparseg.predict.batch import predict_cases
from sparseg.predict.case import CaseResult
from sparseg.predict.inputs import PredictionCase
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

SHAPE = (9, 8, 7)


def write_cases(root: Path, number: int) -> list[PredictionCase]:
    """Write phantoms; their labels go to the folder `out` beside them."""
    root.mkdir(parents=True, exist_ok=True)
    cases = []
    for seed in range(number):
        name = f"case_{seed:03d}"
        write_image(root / f"{name}.nii.gz", make_phantom(SHAPE, seed=seed)[0])
        cases.append(PredictionCase(name, root / f"{name}.nii.gz", root.parent / "out" / f"{name}.nii.gz"))
    return cases


class Notes:
    """A monitor that writes everything down, as (what, case, more)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def of(self, kind: str) -> list[str]:
        """Names of the cases of one kind of event."""
        return [name for what, name, _ in self.events if what == kind]

    def on_start(self, case: PredictionCase):
        self.events.append(("start", case.name, ""))
        return lambda done, total: None  # noqa: ARG005

    def on_redo(self, case: PredictionCase, why: str) -> None:
        self.events.append(("redo", case.name, why))

    def on_done(self, case: PredictionCase, result: CaseResult) -> None:  # noqa: ARG002
        self.events.append(("done", case.name, ""))

    def on_reused(self, case: PredictionCase, row) -> None:  # noqa: ARG002
        self.events.append(("reused", case.name, ""))

    def on_error(self, case: PredictionCase, error) -> None:
        self.events.append(("error", case.name, error.code))

    def on_wait(self, num_cases: int) -> None:
        self.events.append(("wait", "", str(num_cases)))


def go(predictor, cases, out, **options):
    """Run; return the notes of the monitor and the errors."""
    notes = Notes()
    errors = predict_cases(predictor, cases, out, notes, **options)
    return notes, errors


def names(cases) -> list[str]:
    """Names of cases."""
    return [case.name for case in cases]


def report(out):
    """Content of `report.json`."""
    return json.loads((out / "report.json").read_text())
