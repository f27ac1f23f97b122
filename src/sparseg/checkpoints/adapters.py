"""Foreign weights, strictly: published models, SelfMedMAE pre-trainings, MONAI's UNETR and ViT encoders.

Names are paired in `key_tables.py`. A name that is unknown, missing or of the wrong shape is an error, never
a warning; what is left out on purpose stands in the `AdapterReport`.
"""

from __future__ import annotations

from sparseg.checkpoints.adapters_common import read_foreign_state
from sparseg.checkpoints.adapters_encoder import AdapterReport
from sparseg.checkpoints.adapters_monai import (
    from_monai_unetr,
    load_monai_encoder,
    to_monai_unetr_state_dict,
)
from sparseg.checkpoints.adapters_published import from_published, load_selfmedmae_encoder

__all__ = [
    "AdapterReport",
    "from_monai_unetr",
    "from_published",
    "load_monai_encoder",
    "load_selfmedmae_encoder",
    "read_foreign_state",
    "to_monai_unetr_state_dict",
]
