"""Inputs full of patient data that is none, and the search for it."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import nibabel as nib
import numpy as np

from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume
from volumes.dicom_label_files import make_series

from .dicom_faults import save_series

MARKER = re.compile(rb"ZZPHI\d\d", re.IGNORECASE)
FOLDER = "ZZPHI14 ward"
DICOM_FIELDS = {
    "PatientName": "ZZPHI01^ANNA",
    "PatientID": "ZZPHI02",
    "PatientBirthDate": "19600101",
    "AccessionNumber": "ZZPHI04",
    "InstitutionName": "ZZPHI05",
    "ReferringPhysicianName": "ZZPHI06",
    "PatientComments": "ZZPHI07",
    "StudyDescription": "ZZPHI08",
}
BIRTH_DATE = b"19600101"  # a date has no room for letters: this is marker 03
NIFTI_FIELDS = {
    "descrip": b"ZZPHI09",
    "aux_file": b"ZZPHI10",
    "db_name": b"ZZPHI11",
    "intent_name": b"ZZPHI12",
}
NUM_MARKERS = len(DICOM_FIELDS) + len(NIFTI_FIELDS) + 2  # a header extension, and the name of the folder


def marked_series(folder: Path, *, spoil: bool = False) -> Path:
    """Write a DICOM series that names its patient."""
    slices = make_series()  # with all UIDs that a DICOM output refers to
    for item in slices:
        for name, value in DICOM_FIELDS.items():
            setattr(item, name, value)
    if spoil:
        del slices[3]
    return save_series(folder, slices)


def marked_nifti(path: Path, *, spoil: bool = False, seed: int = 0, labels: bool = False) -> Volume:
    """Write a phantom, or its labels, with every free text field filled, and a header extension."""
    image, truth = make_phantom((14, 12, 13), spacing=(1.5, 1.0, 2.0), seed=seed)
    array = truth.array[0].astype(np.uint8) if labels else image.array[0].copy()
    if spoil:
        array[3, 3, 3] = np.nan
    file = nib.Nifti1Image(array, image.affine)
    file.header.set_xyzt_units("mm")
    for name, value in NIFTI_FIELDS.items():
        file.header[name] = value
    file.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"ZZPHI13 born " + BIRTH_DATE))
    nib.save(file, path)
    return truth


def markers_in(content: bytes) -> list[bytes]:
    """Return every marker, as it is written there."""
    return MARKER.findall(content) + re.findall(BIRTH_DATE, content)


def markers_below(folder: Path, *, but: str = "") -> dict[str, list[bytes]]:
    """Look through every file below, compressed ones unpacked, and every name.

    Args:
        folder: Where to look; must hold a file.
        but: Suffix of files whose content is left out, since DICOM demands that they name the patient.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    found = {}
    for path in files:
        name = str(path.relative_to(folder))
        content = b"" if but and name.endswith(but) else path.read_bytes()
        if path.suffix == ".gz" and content:
            content += gzip.decompress(content)
        if markers := markers_in(content) + markers_in(name.encode()):
            found[name] = markers
    return found
