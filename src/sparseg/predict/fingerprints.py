"""Hashes that say whether labels on disk are still those that a run would write."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sparseg import __version__
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.predictor import Predictor
from sparseg.volumes.io import source_files

# A new setting counts until it is listed here: a needless second run is better than stale labels.
# The overlap counts as what each model takes it for.
WITHOUT_INFLUENCE = frozenset(
    {
        "batch_size",
        "device",
        "finish_slab",
        "max_bytes",
        "overlap",
        "overlap_cases",
        "previews",
        "sums_device",
    }
)


@dataclass(frozen=True)
class RunKey:
    """What all cases of a run have in common.

    Attributes:
        settings_sha256: Hash of everything that can change labels but the image: models, settings, version.
        weights_sha256: Hash of the weights of each model.
    """

    settings_sha256: str
    weights_sha256: tuple[str, ...]


def run_key(predictor: Predictor) -> RunKey:
    """The key of a predictor. Device, sizes of batches and memory are no part of it."""
    settings = asdict(predictor.settings)
    content = {
        "version": __version__,
        "settings": {name: value for name, value in settings.items() if name not in WITHOUT_INFLUENCE},
        "models": [
            {
                "card": member.card.model_dump(mode="json", exclude={"provenance"}),
                "overlap": member.overlap,
                # It is there under a deadline only, which chooses the keep ratio by it.
                "curve": None if member.curve is None else member.curve.model_dump(mode="json"),
            }
            for member in predictor.members
        ],
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return RunKey(
        hashlib.sha256(canonical.encode()).hexdigest(),
        tuple(member.card.weights_sha256 for member in predictor.members),
    )


def file_sha256(path: Path) -> str:
    """Hash of a file, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_sha256(case: PredictionCase) -> str:
    """Hash of all bytes that a case is read from; of a single file the one that `sha256sum` prints.

    Several files (channels, a DICOM folder, a header beside its data) count in order, those of a folder with
    their names, and so does the series that is to be taken from a folder.

    Raises:
        OSError: a file cannot be read.
    """
    files = [source_files(path) for path in (case.image, *case.channels)]
    if len(files) == 1 and files[0] == [case.image] and case.series_uid is None:
        return file_sha256(case.image)
    total = hashlib.sha256(json.dumps([case.series_uid, len(files)]).encode())
    for number, group in enumerate(files):
        for file in group:
            if file.is_file():
                total.update(json.dumps([number, file.name, file_sha256(file)]).encode())
    return total.hexdigest()
