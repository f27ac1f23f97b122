"""sparseg: fast 3-D medical image segmentation with token sparsification.

Heavy imports (torch, MONAI) happen on first use of a name, so that `import sparseg` and the command line
start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sparseg.errors import SparsegError

if TYPE_CHECKING:
    from sparseg.checkpoints.adapters import from_monai_unetr, from_published
    from sparseg.checkpoints.folder import load_model
    from sparseg.models.build import build_segmenter
    from sparseg.models.segmenter import SegmenterOutput, SparseUNETR
    from sparseg.tokens.stages import StageTokens

__version__ = "0.1.0"

__all__ = [
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

_HOMES = {
    "SegmenterOutput": "sparseg.models.segmenter",
    "SparseUNETR": "sparseg.models.segmenter",
    "StageTokens": "sparseg.tokens.stages",
    "build_segmenter": "sparseg.models.build",
    "from_monai_unetr": "sparseg.checkpoints.adapters",
    "from_published": "sparseg.checkpoints.adapters",
    "load_model": "sparseg.checkpoints.folder",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparseg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
