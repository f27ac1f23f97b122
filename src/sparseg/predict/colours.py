"""Colours of labels: the same name has the same colour in every file."""

from __future__ import annotations

import colorsys
import hashlib
import re
from collections.abc import Mapping

Colour = tuple[int, int, int]

# Structures that come in pairs share a colour of their own, lighter on the left.
_PAIRED: dict[str, Colour] = {
    "adrenal gland": (214, 168, 64),
    "clavicula": (206, 196, 160),
    "femur": (226, 212, 176),
    "hip": (218, 198, 152),
    "humerus": (222, 206, 166),
    "iliac artery": (200, 52, 64),
    "iliac vein": (52, 88, 176),
    "kidney": (176, 84, 48),
    "lung": (132, 176, 204),
    "scapula": (210, 188, 146),
}
_SINGLE: dict[str, Colour] = {
    "airway": (156, 204, 224),
    "aorta": (216, 40, 48),
    "autochthon": (164, 88, 84),
    "bladder": (240, 204, 88),
    "body": (228, 184, 156),
    "bone": (230, 216, 184),
    "brain": (232, 184, 188),
    "brainstem": (188, 140, 176),
    "cancer": (112, 176, 40),
    "cerebellum": (204, 148, 140),
    "colon": (200, 140, 92),
    "core": (236, 148, 36),
    "cyst": (88, 196, 200),
    "duodenum": (236, 168, 120),
    "edema": (96, 184, 120),
    "enhancing tumor": (232, 72, 88),
    "esophagus": (212, 156, 172),
    "gallbladder": (84, 156, 72),
    "heart": (196, 60, 72),
    "heart atrium": (224, 96, 116),
    "heart ventricle": (180, 44, 88),
    "hippocampus": (148, 120, 200),
    "inferior vena cava": (48, 96, 196),
    "left atrium": (224, 96, 116),
    "left ventricle": (180, 44, 88),
    "lesion": (236, 200, 40),
    "liver": (148, 72, 44),
    "muscle": (172, 76, 68),
    "necrosis": (104, 100, 108),
    "nodule": (168, 204, 48),
    "pancreas": (232, 188, 108),
    "portal and splenic vein": (64, 136, 208),
    "portal vein and splenic vein": (64, 136, 208),
    "prostate": (188, 144, 96),
    "rectum": (176, 112, 84),
    "rib": (224, 208, 170),
    "right atrium": (112, 112, 216),
    "right ventricle": (80, 80, 184),
    "small bowel": (220, 152, 136),
    "spinal cord": (244, 220, 112),
    "spleen": (156, 76, 128),
    "stomach": (220, 128, 140),
    "thyroid": (172, 100, 152),
    "trachea": (140, 196, 220),
    "tumor": (124, 188, 36),
    "uterus": (204, 108, 144),
    "vein": (56, 104, 188),
    "vertebra": (234, 222, 192),
    "whole tumor": (84, 172, 108),
}
_SPELLINGS = {
    "tumour": "tumor",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "postcava": "inferior vena cava",
    "ivc": "inferior vena cava",
    "vertebrae": "vertebra",
    "kidneys": "kidney",
    "lungs": "lung",
    "bones": "bone",
    "urinary": "",
    "enhanced": "enhancing",
}


def label_colours(names: Mapping[int, str]) -> dict[int, Colour]:
    """Colours of all labels but the background 0, by id, each channel 0 to 255."""
    return {label: colour_of(name) for label, name in names.items() if label}


def colour_of(name: str) -> Colour:
    """The colour of a name: from the table for common structures, otherwise made from the name alone.

    Case, order of words, underscores and British or American spelling make no difference; nor do the other
    labels of a file, so that a structure looks the same whatever model found it.
    """
    words = _words(name)
    # Sorted, because "right kidney" and "kidney, right" are both in use.
    known = _BY_WORDS.get(tuple(sorted(words)))
    return known or _generated(" ".join(sorted(words)) or name)


def _words(name: str) -> list[str]:
    split = re.findall(r"[^\W_]+", name.casefold())
    return " ".join(_SPELLINGS.get(word, word) for word in split).split()


def _lighter(colour: Colour) -> Colour:
    red, green, blue = (value + (255 - value) * 3 // 10 for value in colour)
    return (red, green, blue)


def _by_words() -> dict[tuple[str, ...], Colour]:
    table = {tuple(sorted(name.split())): colour for name, colour in _SINGLE.items()}
    for name, colour in _PAIRED.items():
        for side, own in ((None, colour), ("left", _lighter(colour)), ("right", colour)):
            table[tuple(sorted([*name.split(), *([side] if side else [])]))] = own
    return table


def _generated(text: str) -> Colour:
    digest = hashlib.sha256(text.encode()).digest()
    hue = int.from_bytes(digest[:4]) / 2**32
    saturation = 0.5 + 0.35 * digest[4] / 255
    value = 0.7 + 0.25 * digest[5] / 255
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return (red, green, blue)


_BY_WORDS = _by_words()
