"""DICOM: per case a folder with one CT or MR series and, as DICOM SEG, its labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sparseg.datasets.writers.dicom_seg import make_segmentation
from sparseg.datasets.writers.dicom_series import Identity, make_series
from sparseg.datasets.writers.files import write_declaration, write_readme
from sparseg.datasets.writers.written import Header, WrittenCase


def write(root: Path, cases: Iterable[WrittenCase], header: Header) -> None:
    """Write CASE/0001.dcm ... and CASE/labels.dcm, and sparseg.yaml, as DICOM files know names but no ids.

    Raises:
        VolumeError: an image beyond int16.
        GeometryError: voxel axes that are not at right angles.
    """
    modality = "CT" if header.channels[0].upper() == "CT" else "MR"
    for case in cases:
        folder = root / case.name
        folder.mkdir()
        identity = Identity(
            dataset=header.name,
            case=case.name,
            patient=case.subject or case.name,
            modality=modality,
            synthetic=bool(header.synthetic),
            derivation=header.description,
        )
        series = make_series(case.image, identity)
        for number, item in enumerate(series, start=1):
            item.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
        if case.labels is not None:
            segmentation = make_segmentation(series, case.labels, header.labels, identity)
            segmentation.save_as(folder / "labels.dcm", enforce_file_format=True)
    write_declaration(root, header)
    write_readme(root, header)
