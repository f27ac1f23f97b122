"""What the DICOM objects we write have in common: patient and study, names, and the way to the disk."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset

from sparseg.errors import LabelError, VolumeError
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
# Characters of a long string (LO), the type of most names and descriptions.
MAX_TEXT = 64

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


def structure_names(names: Mapping[int, str], ids: Sequence[int]) -> dict[int, str]:
    """Return the names as DICOM can hold them: cut to `MAX_TEXT` characters, without backslashes.

    Args:
        names: Id -> name.
        ids: The structures that will be written.

    Raises:
        LabelError: two names that are then the same; whoever reads the object would unite the two.
    """
    found: dict[str, int] = {}
    for label_id in ids:
        name = names[label_id].replace("\\", "_")[:MAX_TEXT].strip()  # a backslash would part two names
        if name in found:
            raise LabelError(
                f"labels must differ in the first {MAX_TEXT} characters of their names",
                received=f"{name!r} for ids {found[name]} and {label_id}",
                remedy="give them shorter names, or write another format",
                code="label-names",
            )
        found[name] = label_id
    return {label_id: name for name, label_id in found.items()}


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
