"""Write cases as a dataset of any supported layout; the folder appears when it is complete."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from sparseg.datasets.label_table import require_known_ids
from sparseg.datasets.writers import bids, datalist, decathlon, folders, nnunet, table
from sparseg.datasets.writers.files import ENDINGS, NIFTI_ENDINGS, write_text
from sparseg.datasets.writers.written import Header, WrittenCase
from sparseg.errors import DatasetError
from sparseg.volumes.geometry import require_same_grid
from sparseg.volumes.io import case_name

Writer = Callable[[Path, Iterable[WrittenCase], Header], None]

LAYOUTS = ("decathlon", "nnunet", "datalist", "bids", "folders", "table", "dicom")
# What a layout has words for; a case that says more is refused rather than cut down.
_KNOWS_TEST_LABELS = {"decathlon", "nnunet", "datalist", "folders", "table"}
_KNOWS_FOLDS = {"datalist", "table"}
_KNOWS_SUBJECTS = {"bids", "table", "dicom"}


def write_dataset(
    layout: str,
    cases: Iterable[WrittenCase],
    to: Path | str,
    *,
    name: str,
    channels: tuple[str, ...],
    labels: dict[int, str],
    regions: Mapping[str, tuple[int, ...]] | None = None,
    synthetic: str = "",
    file_ending: str = ".nii.gz",
    absolute: bool = False,
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Write a dataset.

    Args:
        layout: One of `LAYOUTS`.
        cases: Read once, one case in memory at a time.
        to: Folder to write; must be new or empty. It is there only when everything is written.
        name: Title.
        channels: Name of each image channel, in order.
        labels: Id -> name; 0 is the background.
        regions: Name -> ids of overlapping regions, in output order.
        synthetic: How the cases were made, if they are not real; marks the whole dataset as synthetic.
        file_ending: Suffix of volume files; BIDS takes .nii.gz only, DICOM has none.
        absolute: Write absolute paths (datalist only).
        extra_files: Name -> text of further files for the folder.

    Returns:
        The folder, for `read_dataset`.

    Raises:
        DatasetError: an unknown layout, a filled folder, no case, two cases of one name, or a case that the
            layout cannot hold.
        GeometryError: labels on another grid than their image.
        LabelError: ids that are not declared.
        VolumeError: a volume that cannot be stored, or a disk that refuses.
    """
    target = Path(to)
    _require_layout(layout, channels, file_ending, absolute)
    _require_new(target)
    title = name if not synthetic or name.lower().startswith("synthetic") else f"synthetic {name}"
    header = Header(
        name=title,
        channels=channels,
        labels=dict(sorted(labels.items())),
        regions=dict(regions or {}),
        synthetic=synthetic,
        target=target,
        file_ending=file_ending,
        absolute=absolute,
    )
    write = _writer(layout)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.parent / f".{uuid.uuid4().hex}.part"
    try:
        building.mkdir()
        write(building, _checked(cases, header, layout), header)
        for file, text in (extra_files or {}).items():
            write_text(building / file, text)
        # An empty folder would be replaced by the rename on some systems only.
        if target.exists():
            target.rmdir()
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _writer(layout: str) -> Writer:
    if layout == "dicom":
        # The DICOM libraries cost a second that the other layouts should not pay for.
        from sparseg.datasets.writers import dicom

        return dicom.write
    writers: dict[str, Writer] = {
        "decathlon": decathlon.write,
        "nnunet": nnunet.write,
        "datalist": datalist.write,
        "bids": bids.write,
        "folders": folders.write,
        "table": table.write,
    }
    return writers[layout]


def _require_layout(layout: str, channels: tuple[str, ...], file_ending: str, absolute: bool) -> None:
    if layout not in LAYOUTS:
        raise DatasetError(
            f"a layout to write must be one of {', '.join(LAYOUTS)}",
            received=layout,
            remedy="choose one of these",
            code="layout-unknown",
        )
    allowed = {"bids": NIFTI_ENDINGS[:1], "dicom": NIFTI_ENDINGS[:1]}.get(layout, ENDINGS)
    if file_ending not in allowed:
        raise DatasetError(
            f"the file ending for {layout} must be one of {', '.join(allowed)}",
            received=file_ending,
            remedy="choose one of these, or another layout",
            code="file-ending",
        )
    if absolute and layout != "datalist":
        raise DatasetError(
            "only a datalist may hold absolute paths",
            received=layout,
            remedy="write the layout datalist, or relative paths",
            code="absolute-paths",
        )
    if not channels or (layout == "dicom" and len(channels) > 1):
        raise DatasetError(
            "a dataset must have at least one channel, and one only in DICOM",
            received=f"{len(channels)} ({', '.join(channels)})",
            remedy="write another layout",
            code="channel-count",
        )


def _require_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DatasetError(
            "the folder to write must be new or empty",
            received="a filled folder" if target.is_dir() else "a file",
            remedy="name another folder, or remove this one",
            where=target,
            code="target-filled",
        )


def _checked(cases: Iterable[WrittenCase], header: Header, layout: str) -> Iterator[WrittenCase]:
    """Yield the cases, each checked before a byte of it is written."""
    seen: set[str] = set()
    for case in cases:
        _require_name(case, seen)
        _require_room(case, layout)
        if case.image.num_channels != len(header.channels):
            raise DatasetError(
                f"images must have {len(header.channels)} channels ({', '.join(header.channels)})",
                received=case.image.num_channels,
                remedy="name every channel",
                where=case.name,
                code="channel-count",
            )
        if case.labels is not None:
            require_same_grid(case.image, case.labels, what="image and labels")
            require_known_ids(case.labels.array, header.labels, where=case.name)
        yield case
    if not seen:
        raise DatasetError(
            "a dataset must hold at least one case",
            received="none",
            remedy="give cases to write",
            where=header.target,
            code="no-cases",
        )


def _require_name(case: WrittenCase, seen: set[str]) -> None:
    """Names become files, on file systems that may not tell capitals apart."""
    if case.name != case_name(case.name) or case.name.casefold() in seen:
        raise DatasetError(
            "the name of a case must be usable as a file name and its own",
            received=repr(case.name),
            remedy="use letters, digits, _ and -, each name once",
            code="case-name",
        )
    seen.add(case.name.casefold())


def _require_room(case: WrittenCase, layout: str) -> None:
    unlabelled = case.labels is None and case.split == "training"
    test_labels = case.split == "test" and case.labels is not None and layout not in _KNOWS_TEST_LABELS
    folds = case.fold is not None and layout not in _KNOWS_FOLDS
    subject = case.subject not in ("", case.name) and layout not in _KNOWS_SUBJECTS
    faults = {
        "a training case without labels": unlabelled,
        "a test case with labels": test_labels,
        "a fold": folds,
        "a subject of its own": subject,
    }
    for fault, present in faults.items():
        if present:
            raise DatasetError(
                f"the layout {layout} must have room for all that a case says",
                received=fault,
                remedy="write the layout table, or leave it out",
                where=case.name,
                code="layout-room",
            )
