"""Writes docs/reference/configuration.md from the settings classes, so that it cannot be out of date."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from sparseg.config import Config
from sparseg.datasets.synth.config import SynthConfig
from sparseg.models.autoencoder import AutoencoderConfig
from sparseg.models.config import SegmenterConfig
from sparseg.models.peer_config import PeerConfig
from sparseg.models.presets import PRESETS
from sparseg.preprocessing.config import CTIntensity, MRIntensity, PreprocessConfig
from sparseg.training.config import AugmentConfig, OptimizerConfig, TrainConfig
from sparseg.training.distill_config import DistillConfig
from sparseg.training.loss_config import LossConfig
from sparseg.training.pretrain.config import CropConfig, PretrainConfig
from sparseg.training.sampling_config import SamplingConfig
from sparseg.training.selection_config import SelectionConfig

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "configuration.md"
SECTIONS: list[tuple[str, str, type[Config]]] = [
    ("Training run", "top level of the YAML file", TrainConfig),
    ("model", "overrides of the preset", SegmenterConfig),
    ("model of a peer", "overrides of a preset `peer_...`, a network of MONAI", PeerConfig),
    ("preprocess", "how an image becomes the model's input", PreprocessConfig),
    ("preprocess.intensity, kind: ct", "", CTIntensity),
    ("preprocess.intensity, kind: mr", "", MRIntensity),
    ("loss", "what is minimised", LossConfig),
    ("distill", "what a sparse network learns from a dense one", DistillConfig),
    ("selection", "how tokens are chosen while training", SelectionConfig),
    ("sampling", "where crops are cut", SamplingConfig),
    ("augment", "random changes to each training crop", AugmentConfig),
    ("optimizer", "AdamW and its schedule", OptimizerConfig),
    (
        "Pre-training",
        "top level of the file for `sparseg pretrain`; `optimizer` as above",
        PretrainConfig,
    ),
    ("autoencoder", "mask, target and decoder of a pre-training", AutoencoderConfig),
    ("crops", "choice and changes of pre-training crops", CropConfig),
    ("Synthetic subjects", "settings of `sparseg synth`, not part of a training run", SynthConfig),
]


def render() -> str:
    """The whole page."""
    parts = [
        "# Configuration reference\n",
        "Made by `scripts/config_reference.py` from the settings classes; do not edit by hand.\n",
        "`sparseg train DATASET --out RUN --config FILE.yaml --set optimizer.lr=5e-4`:",
        "defaults, then the file, then `--set`, then the flags. An unknown key is an error.",
        "`in_channels` and `num_classes` follow the dataset.\n",
        f"Presets: {', '.join(f'`{name}`' for name in PRESETS)}.\n",
    ]
    for title, note, kind in SECTIONS:
        parts += [f"## {title}\n"] + ([f"{note[0].upper()}{note[1:]}.\n"] if note else [])
        parts += ["| key | default | meaning |", "|---|---|---|"]
        meanings = _attribute_texts(kind)
        for name, info in kind.model_fields.items():
            default = "required" if info.is_required() else _show(info.get_default(call_default_factory=True))
            parts.append(f"| `{name}` | {default} | {meanings.get(name, '')} |")
        parts.append("")
    return "\n".join(parts)


def _show(value: object) -> str:
    return "see below" if isinstance(value, Config) else f"`{value}`"


def _attribute_texts(kind: type[Config]) -> dict[str, str]:
    """`name: text` entries of the Attributes section of a class's docstring."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): ((?:.*\n?)(?:        .*\n?)*)", section + "\n", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
