"""SNOMED CT codes for label names of common organs; any other name gets a code of our own scheme."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_MAX_MEANING = 64

# Code value and meaning as in the DICOM standard's use of SNOMED CT.
_ORGANS = {
    "adrenal gland": ("23451007", "Adrenal gland"),
    "aorta": ("15825003", "Aorta"),
    "brain": ("12738006", "Brain"),
    "cerebellum": ("113305005", "Cerebellum"),
    "colon": ("71854001", "Colon"),
    "duodenum": ("38848004", "Duodenum"),
    "esophagus": ("32849002", "Esophagus"),
    "femur": ("71341001", "Femur"),
    "gallbladder": ("28231008", "Gallbladder"),
    "heart": ("80891009", "Heart"),
    "hippocampus": ("5366008", "Hippocampus"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "kidney": ("64033007", "Kidney"),
    "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"),
    "pancreas": ("15776009", "Pancreas"),
    "portal vein": ("32764006", "Portal vein"),
    "prostate": ("41216001", "Prostate"),
    "rectum": ("34402009", "Rectum"),
    "small intestine": ("30315005", "Small intestine"),
    "spinal cord": ("2748008", "Spinal cord"),
    "spleen": ("78961009", "Spleen"),
    "splenic vein": ("35819009", "Splenic vein"),
    "stomach": ("69695003", "Stomach"),
    "thyroid": ("69748006", "Thyroid"),
    "trachea": ("44567001", "Trachea"),
    "urinary bladder": ("89837001", "Bladder"),
    "uterus": ("35039007", "Uterus"),
}
_FINDINGS = {
    "cyst": ("367643001", "Cyst"),
    "edema": ("79654002", "Edema"),
    "lesion": ("52988006", "Lesion"),
    "necrosis": ("6574001", "Necrosis"),
    "neoplasm": ("108369006", "Neoplasm"),
}
_OTHER_WORDS = {
    "adrenal": "adrenal gland",
    "bladder": "urinary bladder",
    "gall bladder": "gallbladder",
    "ivc": "inferior vena cava",
    "kidneys": "kidney",
    "lungs": "lung",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "postcava": "inferior vena cava",
    "small bowel": "small intestine",
    "thyroid gland": "thyroid",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
}
_SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
_PAIRED = {"adrenal gland", "femur", "hippocampus", "kidney", "lung"}


@dataclass(frozen=True)
class Code:
    """Value, scheme and meaning of one coded term."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class CodedName:
    """What a label name means.

    Attributes:
        category: Anatomical structure, or morphologically abnormal structure.
        kind: The organ or finding.
        side: Left or right, of paired organs.
        region: The organ that a finding such as "liver tumour" lies in.
    """

    category: Code
    kind: Code
    side: Code | None = None
    region: Code | None = None


_ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")


def code_name(name: str) -> CodedName:
    """Return the coded terms of a label name; case, order of the side, `_` and `-` do not matter.

    A name that is not in the table, whole, is never guessed at: it gets the private scheme 99SPARSEG, with a
    value that is the same for the same name everywhere.
    """
    words = re.findall(r"[^\W_]+", name.casefold())
    sides = [word for word in words if word in _SIDES]
    plain = _usual(" ".join(word for word in words if word not in _SIDES))
    if len(sides) == 0 and plain in _ORGANS:
        return CodedName(_ANATOMY, _snomed(_ORGANS[plain]))
    if len(sides) == 1 and plain in _PAIRED:
        return CodedName(_ANATOMY, _snomed(_ORGANS[plain]), side=_snomed(_SIDES[sides[0]]))
    return (_finding(plain) if not sides else None) or CodedName(_ANATOMY, _private(name))


def _finding(plain: str) -> CodedName | None:
    place, _, last = plain.rpartition(" ")
    kind, organ = _FINDINGS.get(_usual(last)), _ORGANS.get(_usual(place))
    if kind is None or (place and organ is None):
        return None
    return CodedName(_ABNORMAL, _snomed(kind), region=_snomed(organ) if organ else None)


def _usual(words: str) -> str:
    return _OTHER_WORDS.get(words, words)


def _snomed(term: tuple[str, str]) -> Code:
    return Code(term[0], "SCT", term[1])


def _private(name: str) -> Code:
    # A code value has room for 16 characters, a name may need more.
    digest = hashlib.sha256(" ".join(name.casefold().split()).encode()).hexdigest()
    return Code(f"L{digest[:15].upper()}", "99SPARSEG", name[:_MAX_MEANING])
