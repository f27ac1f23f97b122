"""`sparseg.yaml`: what the files of a dataset cannot say themselves, declared once.

name: Brain tumours
channels: [T1, T1c, T2, FLAIR]
labels: {0: background, 1: necrosis, 2: oedema, 4: enhancing}
regions: {whole tumour: [1, 2, 4], core: [1, 4], enhancing: [4]}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from sparseg.config import Config, load_yaml, parse_config
from sparseg.datasets.label_table import parse_labels
from sparseg.errors import DatasetError

FILE = "sparseg.yaml"


class _Content(Config):
    name: str = ""
    channels: tuple[str, ...] = ()
    labels: dict[str | int, Any] = Field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Declaration:
    """What a user declares about a dataset; everything may be missing.

    Attributes:
        name: Title.
        channels: Name of each image channel, in order.
        labels: Id -> name; 0 is the background.
        regions: Name -> ids of overlapping regions, in output order.
    """

    name: str = ""
    channels: tuple[str, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)


def read_declaration(root: Path) -> Declaration:
    """Read `sparseg.yaml` of a folder; an empty declaration if there is none.

    Raises:
        ConfigError: not valid YAML, an unknown key, a value of the wrong kind.
        DatasetError: labels or regions that contradict themselves.
    """
    file = root / FILE
    if not file.is_file():
        return Declaration()
    content = parse_config(_Content, load_yaml(file), where=file)
    if content.regions and not content.labels:
        raise DatasetError(
            "regions must be declared together with labels",
            received=", ".join(content.regions),
            remedy="add labels, id -> name, to the file",
            where=file,
        )
    if not content.labels:
        return Declaration(content.name, content.channels)
    table = {str(key): value for key, value in content.labels.items()}
    labels, regions = parse_labels(table, content.regions, where=file)
    return Declaration(content.name, content.channels, labels, regions)
