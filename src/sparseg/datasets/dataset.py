"""A dataset as sparseg sees it, whatever its layout on disk: cases, channels, labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sparseg.datasets.findings import Finding
from sparseg.errors import DatasetError


@dataclass(frozen=True)
class Case:
    """The files of one case.

    Attributes:
        name: Unique in the dataset; names the outputs.
        images: One file or DICOM folder per channel, in channel order; a single file may hold all channels.
        label: Label map, RTSTRUCT or DICOM SEG file, or None.
        masks: Instead of a label map, one binary mask file per structure: (its name, file).
        subject: The patient; cases of one subject never part over training and validation. Empty: the name.
        series_uid: SeriesInstanceUID to take where the DICOM folder holds several series.
        fold: Fold in which the case validates, if the dataset says so.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    masks: tuple[tuple[str, Path], ...] = ()
    subject: str = ""
    series_uid: str | None = None
    fold: int | None = None

    @property
    def image(self) -> Path:
        """The first image file, for messages."""
        return self.images[0]

    @property
    def labelled(self) -> bool:
        """Whether the case has labels of any kind."""
        return self.label is not None or bool(self.masks)

    @property
    def label_files(self) -> tuple[Path, ...]:
        """The files that hold its labels."""
        return (*([self.label] if self.label is not None else []), *(path for _, path in self.masks))

    @property
    def patient(self) -> str:
        """What cases are grouped by."""
        return self.subject or self.name


@dataclass(frozen=True)
class Dataset:
    """What a dataset holds.

    Attributes:
        name: Title.
        channels: Name of each image channel, in order, such as ("CT",).
        labels: Id -> name, ascending; 0 is the background. Ids may have gaps. Empty where the layout does not
            declare any: `survey.with_found_labels` fills them from the label files.
        training: Cases with labels.
        test: Other cases, with or without labels.
        root: The folder, or the file that lists the cases.
        regions: Name -> ids of overlapping regions, in output order; empty for plain classes.
        layout: Name of the layout it was read as, such as "nnU-Net raw".
        problems: What reading the layout found wrong with cases; those cases are not in `training` or `test`.
    """

    name: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    root: Path
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layout: str = ""
    problems: tuple[Finding, ...] = ()

    @property
    def num_classes(self) -> int:
        """Channels of the model's output: classes with the background, or regions."""
        return len(self.regions) or len(self.labels)

    @property
    def cases(self) -> tuple[Case, ...]:
        """Training and test cases."""
        return self.training + self.test

    def describe(self) -> str:
        """One line: layout, number of cases, channels, labels."""
        labels = f"{len(self.labels) - 1} labels" if self.labels else "labels not declared"
        regions = f", {len(self.regions)} regions" if self.regions else ""
        return (
            f"{self.layout} dataset {self.name!r}: {len(self.training)} training and {len(self.test)} "
            f"test cases, channels {', '.join(self.channels)}, {labels}{regions}"
        )


def require_sound(dataset: Dataset) -> Dataset:
    """Return the dataset if it can be used as it stands.

    Raises:
        DatasetError: a case that cannot be used, a missing file, or two cases of one name.
    """
    if dataset.problems:
        first = dataset.problems[0]
        folder = dataset.root.parent if dataset.root.is_file() else dataset.root
        raise DatasetError(
            "every case of a dataset must be usable",
            received=f"{len(dataset.problems)} problem(s), the first: {first.message}",
            remedy=first.remedy or "run sparseg check on the dataset",
            where=folder / first.file if first.file else dataset.root,
            code=first.code,
        )
    require_distinct_names(dataset)
    paths = [path for case in dataset.cases for path in (*case.images, *case.label_files)]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DatasetError(
            "every file listed must exist",
            received=f"{len(missing)} of {len(paths)} missing: {some(missing)}",
            remedy="complete the dataset or remove the entries",
            where=dataset.root,
            code="file-missing",
        )
    return dataset


def require_distinct_names(dataset: Dataset) -> None:
    """Refuse two cases of one name: outputs are named after cases.

    Raises:
        DatasetError: names both files.
    """
    seen: dict[str, Case] = {}
    for case in dataset.cases:
        # Some file systems do not tell capitals apart.
        other = seen.setdefault(case.name.casefold(), case)
        if other is not case:
            raise DatasetError(
                "every case must have a name of its own, in training and test together",
                received=f"'{case.name}' from {other.image} and {case.image}",
                remedy="rename one of the files, or remove the double entry",
                where=dataset.root,
                code="case-name",
            )


def some(names: list[str]) -> str:
    """The first five names and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
