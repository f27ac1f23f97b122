"""The names that users may rely on, and the keys of stored weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sparseg

NAMES = [
    "SegmenterOutput",
    "SparseUNETR",
    "SparsegError",
    "StageTokens",
    "__version__",
    "build_segmenter",
    "from_monai_unetr",
    "from_published",
    "load_model",
]
ANCHORS = Path(__file__).with_name("state_dict_test_tiny.json")


def test_exported_names_are_frozen() -> None:
    assert sorted(sparseg.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_the_thing_itself(name: str) -> None:
    from sparseg.checkpoints import adapters, folder
    from sparseg.errors import SparsegError
    from sparseg.models import build, segmenter
    from sparseg.tokens.stages import StageTokens

    homes = {
        "SegmenterOutput": segmenter.SegmenterOutput,
        "SparseUNETR": segmenter.SparseUNETR,
        "SparsegError": SparsegError,
        "StageTokens": StageTokens,
        "__version__": sparseg.__version__,
        "build_segmenter": build.build_segmenter,
        "from_monai_unetr": adapters.from_monai_unetr,
        "from_published": adapters.from_published,
        "load_model": folder.load_model,
    }
    assert getattr(sparseg, name) is homes[name]


def test_other_names_are_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'sparseg' has no attribute 'nonsense'"):
        _ = sparseg.nonsense


def test_version_is_semantic_and_that_of_the_installation() -> None:
    from importlib.metadata import version

    assert re.fullmatch(r"\d+\.\d+\.\d+", sparseg.__version__)
    assert version("sparseg") == sparseg.__version__


def test_keys_and_shapes_of_stored_weights_are_frozen() -> None:
    """A change here makes stored models unreadable: it needs a new `format_version` and a way to convert."""
    from sparseg.models.build import build_segmenter

    found = {name: list(value.shape) for name, value in build_segmenter("test_tiny").state_dict().items()}
    assert found == json.loads(ANCHORS.read_text(encoding="utf-8"))
