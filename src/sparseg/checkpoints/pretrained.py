"""A pre-trained encoder is a folder: `encoder.safetensors` and `pretrain.json`, without any pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sparseg.config import Config, parse_config
from sparseg.errors import CheckpointError, ConfigError, NumericsError
from sparseg.models.autoencoder import AutoencoderConfig
from sparseg.models.config import SegmenterConfig
from sparseg.preprocessing.config import PreprocessConfig
from sparseg.volumes.atomic import write_bytes_atomically

ENCODER, CARD = "encoder.safetensors", "pretrain.json"
_COPY = "copy the run folder again, or go on with sparseg pretrain --resume"


class PretrainCard(Config):
    """A pre-trained encoder without its weights. Holds no case names and no paths.

    Attributes:
        format_version: Version of this file's layout.
        kind: How it was pre-trained.
        model: Settings of the segmenter that the encoder is made for.
        autoencoder: Mask, target and decoder.
        preprocess: How an image becomes the input.
        channels: Names of the input channels, in order.
        dataset: Title of the dataset.
        num_cases: Images it learnt from.
        steps: Optimiser steps done.
        minutes: Wall-clock time of the run.
        seed: Seed of the run.
        loss: Mean loss over the last steps, up to 100.
        versions: Versions of sparseg and torch.
        encoder_sha256: Hash of `encoder.safetensors`, hexadecimal.
    """

    format_version: Literal[1] = 1
    kind: Literal["masked autoencoder"] = "masked autoencoder"
    model: SegmenterConfig
    autoencoder: AutoencoderConfig
    preprocess: PreprocessConfig
    channels: tuple[str, ...] = Field(min_length=1)
    dataset: str = ""
    num_cases: int = 0
    steps: int = 0
    minutes: float = 0.0
    seed: int = 0
    loss: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    encoder_sha256: str = ""


def save_encoder(folder: Path, encoder: nn.Module, card: PretrainCard) -> None:
    """Write the weights under a side name, then the card with their hash, then rename the weights.

    Wherever this is cut off, `read_encoder` finds weights that match the card.

    Args:
        folder: Existing run folder.
        encoder: Its tensors are stored under their names in the encoder.
        card: Its card; `encoder_sha256` is filled in here.

    Raises:
        NumericsError: a weight is not finite; nothing is written.
        VolumeError: the disk refuses; what was stored before stays.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if broken:
        raise NumericsError(
            "weights must be finite to be stored",
            received=f"{broken[0]} is not",
            remedy="lower optimizer.lr or train in fp32",
        )
    content = save(tensors)
    digest = hashlib.sha256(content).hexdigest()
    values = card.model_copy(update={"encoder_sha256": digest}).model_dump(mode="json")
    fresh = folder / f".{ENCODER}.{digest}"
    write_bytes_atomically(fresh, content)
    write_bytes_atomically(folder / CARD, (json.dumps(values, indent=2) + "\n").encode())
    fresh.replace(folder / ENCODER)
    for stray in folder.glob(f".{ENCODER}.*"):
        stray.unlink(missing_ok=True)


def is_pretrained(folder: Path) -> bool:
    """Whether a folder holds a pre-trained encoder."""
    return (folder / CARD).is_file()


def read_pretrain_card(folder: Path) -> PretrainCard:
    """Read `pretrain.json`.

    Raises:
        CheckpointError: missing, damaged, or of another format.
    """
    path = folder / CARD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return parse_config(PretrainCard, values if isinstance(values, dict) else {}, where=path)
    except FileNotFoundError:
        raise CheckpointError(
            f"a pre-training holds {CARD} and {ENCODER}",
            where=folder,
            remedy="give the folder that sparseg pretrain --out wrote",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise CheckpointError(
            "the card of a pre-training must be complete and valid",
            received=" ".join(str(error).split()),
            where=path,
            remedy=_COPY,
        ) from None


def read_encoder(folder: Path) -> tuple[PretrainCard, dict[str, Tensor]]:
    """Read a pre-trained encoder: its card, and its tensors by their names in the encoder.

    Raises:
        CheckpointError: missing, damaged, or not the weights that the card was written for.
    """
    card = read_pretrain_card(folder)
    # A run killed between the renames has the new weights under their side name.
    for path in (folder / ENCODER, folder / f".{ENCODER}.{card.encoder_sha256}"):
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != card.encoder_sha256:
            continue
        try:
            return card, load(content)
        except SafetensorError as error:
            raise CheckpointError(
                "the weights must be readable",
                received=" ".join(str(error).split()),
                where=path,
                remedy=_COPY,
            ) from None
    raise CheckpointError(
        "the encoder must be the one the card was written for (SHA-256)",
        received="another hash" if (folder / ENCODER).is_file() else "no such file",
        where=folder / ENCODER,
        remedy=_COPY,
    )
