"""A whole synthetic dataset: subjects made one after the other, or by several processes, and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sparseg import __version__
from sparseg.datasets.parallel import stream_items
from sparseg.datasets.synth.config import SynthConfig
from sparseg.datasets.synth.source import Source, prepare_source
from sparseg.datasets.synth.subject import draw_subject
from sparseg.datasets.writers.write import write_dataset
from sparseg.datasets.writers.written import WrittenCase
from sparseg.errors import ConfigError
from sparseg.shapes import Triple
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

FILE = "synth.json"
_PHANTOM_SHAPE = (48, 48, 48)
_PHANTOM_CLASSES = 4
_CHUNK = 2**20


@dataclass(frozen=True)
class Original:
    """The labelled volume as read, and what `synth.json` says of it.

    Attributes:
        image: `[C,H,W,D]`, or None.
        labels: `[1,H,W,D]` ids.
        record: SHA-256 of the files, or the phantom's shape; no names or paths.
    """

    image: Volume | None
    labels: Volume
    record: dict[str, object]


def read_original(labels: Path, image: Path | None) -> Original:
    """Read the labelled volume.

    Raises:
        VolumeError: a file that cannot be trusted.
        GeometryError: no orientation, or a contradictory one.
        LabelError: ids that are not whole numbers.
    """
    ids, array = read_labels(labels), None if image is None else read_volume(image)
    record: dict[str, object] = {"labels_sha256": content_hash(labels)}
    if image is not None:
        record["image_sha256"] = content_hash(image)
    return Original(array, ids, record)


def phantom_original(shape: Triple | None, seed: int) -> Original:
    """Make a labelled phantom with 1 mm voxels to start from."""
    size = shape or _PHANTOM_SHAPE
    image, labels = make_phantom(size, spacing=(1.0, 1.0, 1.0), num_classes=_PHANTOM_CLASSES, seed=seed)
    return Original(image, labels, {"phantom": {"shape": list(size), "seed": seed}})


def write_synthetic(
    original: Original,
    config: SynthConfig,
    to: Path,
    *,
    num_cases: int = 10,
    num_test: int = 0,
    layout: str = "decathlon",
    names: Mapping[int, str] | None = None,
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a synthetic dataset, and `synth.json` that says how it was made.

    The same arguments give the same files, whatever the number of processes.

    Args:
        original: The labelled volume.
        config: Settings.
        to: Folder to write; must be new or empty.
        num_cases: Training cases, at least 1.
        num_test: Test cases, numbered on.
        layout: One of `writers.write.LAYOUTS`.
        names: Id -> name of labels, declared all; other ids of the volume become "label ID".
        workers: Processes; None takes all processors.
        on_case: Called with a case's name when it is written.

    Returns:
        The folder, for `read_dataset`.

    Raises:
        ConfigError: fewer than one training case, or settings that do not fit the volume.
        LabelError: nothing is labelled.
        DatasetError: a filled folder, an unknown layout, or one that cannot hold test cases.
        VolumeError: the disk refuses.
    """
    if num_cases < 1 or num_test < 0:
        raise ConfigError(
            "a synthetic dataset needs at least one training case and no negative number of test cases",
            received=f"{num_cases} and {num_test}",
            remedy="set --num-cases to 1 or more and --num-test to 0 or more",
            where="synth",
            code="synth-count",
        )
    source = prepare_source(original.image, original.labels, config)
    total = num_cases + num_test
    found = {int(label_id): f"label {label_id}" for label_id in source.label_ids if label_id}
    statement = (
        f"made from one labelled volume by sparseg synth {__version__} "
        f"(modality {config.modality}, intensity {config.intensity}, seed {config.seed}); no real patients"
    )
    return write_dataset(
        layout,
        _cases(source, config, num_cases, total, workers, on_case),
        to,
        name=f"synthetic {config.modality.upper()}",
        channels=_channels(source, config),
        labels={0: "background", **found, **(names or {})},
        synthetic=statement,
        extra_files={FILE: json.dumps(_record(original, config, num_cases, num_test, statement), indent=2)},
    )


def content_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder the hash of its files' sorted hashes, so that names play no part."""
    if path.is_dir():
        hashes = sorted(content_hash(item) for item in path.iterdir() if item.is_file())
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _cases(
    source: Source,
    config: SynthConfig,
    num_training: int,
    total: int,
    workers: int | None,
    on_case: Callable[[str], None],
) -> Iterator[WrittenCase]:
    make = partial(draw_subject, source=source, config=config)
    digits = max(4, len(str(total)))
    for index, (image, labels) in enumerate(stream_items(make, range(total), workers=workers)):
        name = f"synthetic_{index + 1:0{digits}d}"
        yield WrittenCase(name, image, labels, split="training" if index < num_training else "test")
        on_case(name)


def _channels(source: Source, config: SynthConfig) -> tuple[str, ...]:
    if config.modality == "ct":
        return ("CT",)
    count = config.channels or 1
    if config.intensity == "image" and source.image is not None:
        count = len(source.image)
    return ("MR",) if count == 1 else tuple(f"MR{i + 1}" for i in range(count))


def _record(
    original: Original, config: SynthConfig, num_cases: int, num_test: int, statement: str
) -> dict[str, object]:
    return {
        "synthetic": statement,
        "sparseg": __version__,
        "source": original.record,
        "num_cases": num_cases,
        "num_test": num_test,
        "config": config.model_dump(mode="json"),
    }
