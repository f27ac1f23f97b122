"""The standing tasks: datasets with fixed splits on which numbers are compared over time.

docs/explanation/tasks.md says what each of them asks, and recipes/tasks/ holds the settings to train with.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sparseg.config import parse_config
from sparseg.datasets import sample_brain
from sparseg.datasets.parallel import stream_items
from sparseg.datasets.sample import build_once, fetch_sample
from sparseg.datasets.splits import FILES as SPLIT_FILES
from sparseg.datasets.synth import small_structures as small
from sparseg.datasets.synth.config import SynthConfig
from sparseg.datasets.synth.source import prepare_source
from sparseg.datasets.synth.subject import draw_subject
from sparseg.datasets.writers.write import write_dataset
from sparseg.datasets.writers.written import WrittenCase
from sparseg.errors import FetchError
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.volume import Volume

OnCase = Callable[[str], None]

TITLES = {
    "ct": "sparseg CT sample",
    "brain": "sparseg task brain",
    "small": "synthetic sparseg task small",
}

# Our name -> names of the atlas's structures, sides left out. Those in no group count as background.
BRAIN_GROUPS = {
    "cerebral white matter": ("cerebral white matter",),
    "cerebral cortex": ("cerebral cortex",),
    "ventricles": ("lateral ventricle", "inferior lateral ventricle", "3rd ventricle", "4th ventricle"),
    "cerebellum": ("cerebellum white matter", "cerebellum cortex"),
    "thalamus": ("thalamus", "ventral diencephalon"),
    "basal ganglia": ("caudate", "putamen", "pallidum", "accumbens area"),
    "hippocampus and amygdala": ("hippocampus", "amygdala"),
    "brain stem": ("brain stem",),
}
BRAIN_LABELS = {0: "background", **dict(enumerate(BRAIN_GROUPS, start=1))}
# The way of CT keeps each tissue's own mean, here that of T1, up to a random shift; the image is moved to its
# scale and back, so that air is -1000 there. To learn any contrast would take longer than minutes.
_T1_SCALE, _T1_OFFSET = 1000.0, -1000.0
BRAIN_SYNTH = parse_config(
    SynthConfig,
    {
        **{"seed": 0, "modality": "ct", "spacing": (2.0, 2.0, 2.0)},
        **{"hu_jitter": 60.0, "noise": 40.0, "max_thickness_mm": 0.0},
    },
)
NUM_BRAIN, NUM_BRAIN_VAL = 20, 4
NUM_SMALL, NUM_SMALL_VAL, NUM_SMALL_TEST = 14, 2, 4


def make_task(
    name: str, target: Path | str, *, cache: Path | None = None, on_case: OnCase = lambda _: None
) -> Path:
    """Write the dataset of a standing task to `target`.

    Args:
        name: "ct": train on one real abdomen, test on another patient, 12 organs. "brain": train on synthetic
            heads made from an atlas, test on a real T1 image, 8 groups of structures. "small": structures of
            2 to 6 voxels in texture, wholly synthetic.
        target: Folder to create. A complete one is verified and kept.
        cache: Folder of fetched archives, see `fetch_sample`.
        on_case: Called with a case's name when it is made.

    Returns:
        `target`, for `read_dataset`. The same files each time, but for what compression adds.

    Raises:
        FetchError: a download failed, or `target` is something else.
        VolumeError: the disk refuses.
    """
    target = Path(target)
    if name == "ct":
        fetch_sample("ct", target, cache=cache)
    elif name == "brain":
        build_once(target, partial(_build_brain, cache=cache, on_case=on_case))
    else:
        build_once(target, partial(_build_small, on_case=on_case))
    _require_title(target, TITLES[name])
    return target


def num_cases(name: str) -> int | None:
    """Cases that are made for a task; None where none are made but fetched."""
    return {"brain": NUM_BRAIN + 1, "small": NUM_SMALL + NUM_SMALL_TEST}.get(name)


def group_labels(ids: np.ndarray) -> np.ndarray:
    """Return atlas ids `[...]` as numbers of `BRAIN_LABELS`."""
    numbers = {part: i for i, parts in enumerate(BRAIN_GROUPS.values(), start=1) for part in parts}
    table = np.zeros(max(sample_brain.LABELS) + 1, np.int32)
    for label_id, structure in sample_brain.LABELS.items():
        table[label_id] = numbers.get(structure.removeprefix("left ").removeprefix("right "), 0)
    grouped: np.ndarray = table[ids]
    return grouped


def _build_brain(root: Path, *, cache: Path | None, on_case: OnCase) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        sample = fetch_sample("brain", Path(folder) / "sample", cache=cache)
        image = read_volume(sample / "imagesTr/mni_t1.nii.gz")
        labels = read_labels(sample / "labelsTr/mni_t1.nii.gz")
        terms = (sample / "ATLAS_TERMS.txt").read_text(encoding="utf-8", errors="replace")
    grouped = Volume(group_labels(labels.array), labels.affine, labels.source)
    write_dataset(
        "decathlon",
        _brain_cases(image, grouped, on_case),
        root,
        name=TITLES["brain"],
        channels=("MR",),
        labels=BRAIN_LABELS,
        extra_files={"ATLAS_TERMS.txt": terms, **_splits(NUM_BRAIN, NUM_BRAIN_VAL)},
    )
    provenance = (
        f"Training cases are synthetic: deformed and painted from one labelled head (sparseg synth, seed "
        f"{BRAIN_SYNTH.seed}). The test case is real: {sample_brain.PROVENANCE}"
    )
    return _description(root, provenance, licence="research only, see ATLAS_TERMS.txt")


def _brain_cases(image: Volume, labels: Volume, on_case: OnCase) -> Iterator[WrittenCase]:
    """Synthetic heads for training, then the real image."""
    scaled = Volume(image.array * (_T1_SCALE / image.array.max()) + _T1_OFFSET, image.affine, image.source)
    source = prepare_source(scaled, labels, BRAIN_SYNTH)
    make = partial(draw_subject, source=source, config=BRAIN_SYNTH)
    for index, (subject, ids) in enumerate(stream_items(make, range(NUM_BRAIN))):
        positive = np.maximum(subject.array - int(_T1_OFFSET), 0).astype(np.int16)
        yield WrittenCase(_case(index), Volume(positive, subject.affine, subject.source), ids)
        on_case(_case(index))
    yield WrittenCase("mni_t1", image, labels, split="test")
    on_case("mni_t1")


def _build_small(root: Path, *, on_case: OnCase) -> dict[str, object]:
    statement = "spheres and tubes drawn in noise by sparseg sample task small; no patients"
    write_dataset(
        "decathlon",
        _small_cases(on_case),
        root,
        name=TITLES["small"],
        channels=small.CHANNELS,
        labels=small.LABELS,
        synthetic=statement,
        extra_files=_splits(NUM_SMALL, NUM_SMALL_VAL),
    )
    return _description(root, f"Synthetic: {statement}.", licence="none needed")


def _small_cases(on_case: OnCase) -> Iterator[WrittenCase]:
    numbers = range(NUM_SMALL + NUM_SMALL_TEST)
    for index, (image, labels) in enumerate(stream_items(small.draw_small_structures, numbers)):
        yield WrittenCase(_case(index), image, labels, split="training" if index < NUM_SMALL else "test")
        on_case(_case(index))


def _case(index: int) -> str:
    return f"synthetic_{index + 1:04d}"


def _splits(num_cases: int, num_val: int) -> dict[str, str]:
    """One fold: the last cases validate."""
    names = [_case(index) for index in range(num_cases)]
    fold = {"val": names[-num_val:], "train": names[:-num_val]}
    return {SPLIT_FILES[0]: json.dumps({"format": 1, "seed": 0, "folds": [fold]}, indent=1) + "\n"}


def _description(root: Path, provenance: str, *, licence: str) -> dict[str, object]:
    """What was written, and more; it is written again with the hashes of all other files."""
    file = root / "dataset.json"
    written: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return {**written, "provenance": provenance, "licence": licence}


def _require_title(target: Path, title: str) -> None:
    """A folder that holds another sample is complete, but not what was asked for."""
    found = json.loads((target / "dataset.json").read_text(encoding="utf-8")).get("name")
    if found != title:
        raise FetchError(
            f"the target must be new or hold {title!r}",
            received=repr(found),
            remedy="give another target",
            where=target,
        )
