"""Is this model folder whole, and does its network still compute what it did when it was stored?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import CARD, WEIGHTS, load_model, read_card
from sparseg.checkpoints.stored_case import (
    DEVICE_TOLERANCE,
    FILE,
    TOLERANCE,
    StoredCase,
    card_hash,
    decided,
    make_stored_case,
    run_case,
)
from sparseg.config import parse_config
from sparseg.errors import CheckpointError, ConfigError
from sparseg.models.network import Network
from sparseg.volumes.atomic import write_bytes_atomically

# Share of the voxels that may have other labels: those where two classes are as good as equal.
_LABELS = 1e-3
_DEVICE_LABELS = 1e-2


@dataclass(frozen=True)
class Check:
    """One line of the verdict: what was looked at, how it went, and the figures."""

    name: str
    status: Literal["pass", "FAIL", "none"]
    text: str


def verify_model(folder: Path, *, device: str = "cpu") -> list[Check]:
    """Check a model folder; later checks are left out where they would need what failed.

    Args:
        folder: The folder with `model.json`, from `find_model`.
        device: Where the network runs; on other devices than the CPU the tolerance is larger.
    """
    missing = [name for name in (CARD, WEIGHTS) if not (folder / name).is_file()]
    checks = [_verdict("files", not missing, f"{CARD} and {WEIGHTS}", f"missing {', '.join(missing)}")]
    if missing:
        return checks
    try:
        card = read_card(folder)
        net = load_model(folder).to(device)
    except CheckpointError as error:
        return [*checks, Check("network", "FAIL", f"{error.rule}; received {error.received}")]
    if card.weights_sha256:
        checks.append(Check("weights", "pass", f"SHA-256 {card.weights_sha256[:16]} as the card says"))
    else:
        checks.append(Check("weights", "FAIL", "the card names no SHA-256, so nothing vouches for the file"))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    checks.append(
        Check("network", "pass", f"builds, every weight fits, {parameters:,} parameters, all finite")
    )
    return [*checks, *_stored_case_checks(folder, card, net)]


def write_stored_case(folder: Path) -> StoredCase:
    """Make the test case of a model folder and store it as `verify.json`.

    Raises:
        CheckpointError: not a complete, undamaged model.
        VolumeError: the folder cannot be written to.
    """
    case = make_stored_case(load_model(folder), read_card(folder))
    # One line per field: the lists of samples are long.
    lines = (
        f" {json.dumps(name)}: {json.dumps(value)}" for name, value in case.model_dump(mode="json").items()
    )
    content = "{\n" + ",\n".join(lines) + "\n}\n"
    write_bytes_atomically(folder / FILE, content.encode())
    return case


def read_stored_case(folder: Path) -> StoredCase | None:
    """Read `verify.json`; None where there is none.

    Raises:
        CheckpointError: a damaged one.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return parse_config(StoredCase, values if isinstance(values, dict) else {}, where=path)
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise CheckpointError(
            "a stored test case must be complete and valid",
            received=" ".join(str(error).split()),
            remedy="copy the model folder again, or make a new one with `sparseg model verify RUN --write`",
            where=path,
            code="verify-damaged",
        ) from None


def _stored_case_checks(folder: Path, card: ModelCard, net: Network) -> list[Check]:
    try:
        case = read_stored_case(folder)
    except CheckpointError as error:
        return [Check("test case", "FAIL", f"{error.rule}; received {error.received}")]
    if case is None:
        return [Check("test case", "none", "stored with none; `sparseg model verify RUN --write` adds one")]
    shape = (1, card.model.in_channels, *card.model.roi_size)
    same = case.weights_sha256 == card.weights_sha256 and case.card_sha256 == card_hash(card)
    changed = "weights or card are not those the test case was made with"
    first = _verdict(
        "test case", same and case.shape == shape, "made with these weights and this card", changed
    )
    if first.status == "FAIL":
        return [first]
    logits, _ = run_case(net, case.shape, case.seed)
    on_cpu = next(net.parameters()).device.type == "cpu"
    return [
        first,
        _logits_check(case, logits, TOLERANCE if on_cpu else DEVICE_TOLERANCE),
        _labels_check(case, logits, _LABELS if on_cpu else _DEVICE_LABELS, regions=bool(card.regions)),
    ]


def _logits_check(case: StoredCase, logits: torch.Tensor, tolerance: float) -> Check:
    found = logits.reshape(logits.shape[0], -1)[:, list(case.positions)]
    difference = float((found - torch.tensor(case.logits)).abs().max()) / max(case.largest, 1e-12)
    text = f"{found.numel()} values, largest difference {difference:.1e} of the largest logit"
    return Check("logits", "pass" if difference <= tolerance else "FAIL", f"{text} (allowed {tolerance:g})")


def _labels_check(case: StoredCase, logits: torch.Tensor, allowed: float, *, regions: bool) -> Check:
    labels, counts = decided(logits, regions=regions)
    if labels == case.labels_sha256:
        return Check("labels", "pass", f"all {logits[0].numel():,} voxels the same")
    # A hash does not say how many voxels differ; the counts say how many must at the least.
    moved = sum(abs(now - then) for now, then in zip(counts, case.label_counts, strict=True))
    share = (moved if regions else moved / 2) / logits[0].numel()
    text = f"not all voxels the same; counts differ by {share:.1e} of the voxels (allowed {allowed:g})"
    return Check("labels", "pass" if share <= allowed else "FAIL", text)


def _verdict(name: str, passed: bool, good: str, bad: str) -> Check:
    return Check(name, "pass" if passed else "FAIL", good if passed else bad)
