"""Coded terms of label names, against the dictionaries that come with pydicom."""

import pytest
from pydicom.sr._concepts_dict import concepts

from sparseg.volumes.coded_terms import _FINDINGS, _ORGANS, _SIDES, Code, code_name

KNOWN = {value: meaning for words in concepts["SCT"].values() for value, (meaning, _) in words.items()}


def test_every_code_of_the_table_is_what_pydicom_knows_it_as():
    for value, meaning in [*_ORGANS.values(), *_FINDINGS.values(), *_SIDES.values()]:
        words = {entry[value][0].casefold() for entry in concepts["SCT"].values() if value in entry}
        assert meaning.casefold() in words, (value, meaning, words)
    for coded in (code_name("liver"), code_name("tumor")):
        assert coded.category.value in KNOWN


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("liver", "10200004", None),
        ("Spleen", "78961009", None),
        ("right kidney", "64033007", "Right"),
        ("kidney_left", "64033007", "Left"),
        ("adrenal gland right", "23451007", "Right"),
        ("Inferior_Vena-Cava", "64131007", None),
        ("gall bladder", "28231008", None),
        ("bladder", "89837001", None),
        ("oesophagus", "32849002", None),
        ("lungs", "39607008", None),
    ],
)
def test_organs(name, value, side):
    coded = code_name(name)
    assert (coded.kind.value, coded.kind.scheme) == (value, "SCT")
    assert (coded.side and coded.side.meaning) == side
    assert coded.category.meaning == "Anatomical Structure"


def test_findings_and_where_they_lie():
    assert code_name("tumour").kind == Code("108369006", "SCT", "Neoplasm")
    assert code_name("tumour").region is None
    coded = code_name("liver tumor")
    assert (coded.kind.meaning, coded.region) == ("Neoplasm", Code("10200004", "SCT", "Liver"))
    assert coded.category.value == "49755003"


@pytest.mark.parametrize(
    "name",
    ["lung upper lobe left", "left liver", "left right kidney", "veins", "left tumour", "my tumour"],
)
def test_names_outside_the_table_are_not_guessed(name):
    coded = code_name(name)
    assert (coded.kind.scheme, coded.kind.meaning) == ("99SPARSEG", name)
    assert len(coded.kind.value) == 16
    assert coded == code_name(name)
    assert coded.side is None


def test_private_codes_differ_between_names_and_not_between_spellings():
    assert code_name("veins").kind.value != code_name("vein").kind.value
    assert code_name("My  Label").kind.value == code_name("my label").kind.value
    assert len(code_name("x" * 200).kind.meaning) == 64
