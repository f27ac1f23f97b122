"""`sparseg model`: look after trained models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

if TYPE_CHECKING:
    from sparseg.checkpoints.verify import Check

app = cyclopts.App(name="model", help="Look after trained models.")


@app.command
def verify(
    run: Path,
    /,
    *,
    write: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu",
) -> int:
    """Check that a model is whole and still computes what it did when it was stored.

    Compared are the hash of the weights, network and card, and what the network says about the test case in
    verify.json, an input made from a formula. Training stores one. Exit code 0: nothing is wrong; 1: a check
    failed; 2: no model there.

    Parameters
    ----------
    run
        Model folder, training run, or cross-validation (all its folds).
    write
        Store a test case first, made with what the model computes here and now; for models that have none.
        Weights that are already damaged are refused all the same.
    device
        Where the network runs. The stored values are those of a CPU in float32 (tolerance 1e-4 of the largest
        logit); on other devices 1e-2 is allowed.
    """
    from sparseg.checkpoints.verify import verify_model, write_stored_case
    from sparseg.cli.settings import choose_device
    from sparseg.predict.ensemble import find_models

    where = choose_device(device)
    verdicts = []
    for folder in find_models(run):
        if write:
            write_stored_case(folder)
        verdicts.append(_print(folder, verify_model(folder, device=where)))
    return 0 if all(verdicts) else 1


def _print(folder: Path, checks: list[Check]) -> bool:
    passed = all(check.status != "FAIL" for check in checks)
    sys.stdout.write(f"{folder}\n")
    for check in checks:
        sys.stdout.write(f"  {check.status:<4} {check.name:<10} {check.text}\n")
    tested = any(check.name == "logits" for check in checks)
    good = "passed" if tested else "passed as far as it goes: without a stored test case nothing was computed"
    sys.stdout.write(f"{good if passed else 'FAILED: do not use this model'}\n")
    return passed
