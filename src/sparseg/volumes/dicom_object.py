"""What the DICOM objects we write have in common: tags of patient and study, and the way to the disk."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset

from sparseg.errors import VolumeError
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.dicom_header import DICOM_FAULTS

# Of the patient and study: what DICOM demands of every object, if only empty (type 2), ...
PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# ... and what belongs to it where the series has it.
PATIENT_WHERE_KNOWN = ("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod")

Refusal = Callable[[Exception, Dataset], VolumeError]


@contextmanager
def refusing_faults(source: Dataset, refuse: Refusal) -> Iterator[None]:
    """Turn what pydicom and highdicom make of headers they cannot use into our error.

    Their warnings are dropped: they quote the header, and with it the patient.

    Args:
        source: Where the headers come from.
        refuse: Makes the error of a fault; its message must not quote the headers.

    Raises:
        VolumeError: what `refuse` made.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DICOM_FAULTS as error:
        raise refuse(error, source) from None


def write_object(path: Path, dataset: Dataset, refuse: Refusal) -> None:
    """Write a DICOM object in one step, read back and compared.

    Args:
        path: Final name.
        dataset: With its file meta information.
        refuse: As of `refusing_faults`.

    Raises:
        VolumeError: a copied header that DICOM cannot hold, no such folder, or the disk refuses.
    """
    content = io.BytesIO()
    with refusing_faults(dataset, refuse):
        dataset.save_as(content, enforce_file_format=True)
    write_bytes_atomically(path, content.getvalue())
