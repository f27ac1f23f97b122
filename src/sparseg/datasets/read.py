"""One entry for every layout: point it at a folder or a list, it says what it found."""

from __future__ import annotations

from pathlib import Path

from sparseg.datasets.dataset import Dataset, require_sound
from sparseg.datasets.declaration import Declaration, read_declaration
from sparseg.datasets.layouts import decathlon
from sparseg.errors import DatasetError

# The order decides where a folder could be read in two ways: explicit lists come before conventions.
LAYOUTS = (decathlon,)


def read_dataset(path: Path | str, *, strict: bool = True) -> Dataset:
    """Read a dataset of any supported layout.

    Args:
        path: A dataset folder, or a file that lists the cases.
        strict: Refuse a dataset with missing files, unusable cases or double names. `check` reads without and
            reports them all.

    Returns:
        The dataset; `layout` names what it was read as.

    Raises:
        DatasetError: nothing there, no known layout, or a description that contradicts itself; with `strict`
            also what the cases themselves lack.
        ConfigError: `sparseg.yaml` is not valid.
    """
    root = Path(path)
    if not root.exists():
        raise DatasetError(
            "the dataset must exist", received="no such file or folder", remedy="check the path", where=root
        )
    declaration = read_declaration(root) if root.is_dir() else Declaration()
    for layout in LAYOUTS:
        if layout.recognise(root):
            dataset = layout.read(root, declaration)
            return require_sound(dataset) if strict else dataset
    raise DatasetError(
        "a dataset must have a known layout",
        received=f"none of {', '.join(layout.NAME for layout in LAYOUTS)}",
        remedy="see docs/how-to/datasets.md for the layouts; name the folder that holds the cases",
        where=root,
        code="layout-unknown",
    )
