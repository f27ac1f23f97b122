"""One entry for every layout: point it at a folder or a list, it says what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sparseg.datasets.dataset import Dataset, require_sound
from sparseg.datasets.declaration import Declaration, read_declaration
from sparseg.datasets.layouts import bids, case_folders, datalist, decathlon, dicom, folders, nnunet, table
from sparseg.datasets.layouts.common import subfolders
from sparseg.errors import DatasetError

# More folders than this are cases, not datasets.
_MAX_SUBFOLDERS = 20


class Layout(Protocol):
    """What a module of `layouts` offers.

    Attributes:
        NAME: As `Dataset.layout` says it.
        NEEDS: What makes a folder or file one of this layout, in a few words.
    """

    NAME: str
    NEEDS: str

    def recognise(self, path: Path, /) -> bool:
        """Whether the folder or file has this layout; cheap."""

    def read(self, path: Path, declaration: Declaration, /) -> Dataset:
        """List the cases."""


# The order decides where a folder could be read in two ways: explicit lists come before conventions.
LAYOUTS: tuple[Layout, ...] = (
    decathlon,
    nnunet,
    datalist,
    table,
    bids,
    folders,
    case_folders,
    dicom,
)


def read_dataset(path: Path | str, *, strict: bool = True) -> Dataset:
    """Read a dataset of any supported layout.

    Args:
        path: A dataset folder, or a file that lists the cases. A `sparseg.yaml` in the folder, or beside the
            file, overrides names, channels, labels and regions.
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
    try:
        dataset = _read(root, read_declaration(root if root.is_dir() else root.parent))
    except OSError as error:
        raise DatasetError(
            "the files of a dataset must be readable",
            received=error.strerror,
            remedy="check the permissions",
            where=error.filename or root,
            code="not-readable",
        ) from None
    return require_sound(dataset) if strict else dataset


def _read(root: Path, declaration: Declaration) -> Dataset:
    layout = _layout_of(root)
    if layout is None:
        raise DatasetError(
            "a dataset must have a known layout",
            received=f"none of: {'; '.join(f'{each.NAME} ({each.NEEDS})' for each in LAYOUTS)}",
            remedy=_remedy(root),
            where=root,
            code="layout-unknown",
        )
    return layout.read(root, declaration)


def is_dataset(path: Path) -> bool:
    """Tell whether a folder or file has a known layout.

    Raises:
        DatasetError: it has a description that cannot be read.
    """
    return _layout_of(path) is not None


def _layout_of(path: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.recognise(path)), None)


def _remedy(root: Path) -> str:
    """Name the subfolder that is a dataset, for a path one folder too high."""
    candidates = subfolders(root) if root.is_dir() else []
    inside = [folder.name for folder in candidates[:_MAX_SUBFOLDERS] if _seems_dataset(folder)]
    if inside:
        return f"give the folder {' or '.join(inside)} inside it"
    return "see docs/how-to/datasets.md for the layouts; name the folder that holds the cases"


def _seems_dataset(folder: Path) -> bool:
    try:
        return is_dataset(folder)
    except (DatasetError, OSError):
        return False
