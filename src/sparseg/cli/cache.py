"""`sparseg cache`: what prepared cases take on disk, and how to be rid of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts

if TYPE_CHECKING:
    from sparseg.datasets.cache import CacheSize

app = cyclopts.App(name="cache", help="Show or clear the folder of prepared cases.")


@app.command
def show(*, cache: Path | None = None) -> int:
    """Print where the cache is and what it holds.

    Parameters
    ----------
    cache
        The folder; by default the one in the user's cache folder that `train` uses.
    """
    from sparseg.datasets.cache import cache_size

    folder = _folder(cache)
    _print(folder, cache_size(folder), "holds")
    return 0


@app.command
def clear(*, cache: Path | None = None) -> int:
    """Delete all prepared cases; training prepares them again when it needs them.

    Parameters
    ----------
    cache
        The folder; by default the one in the user's cache folder that `train` uses.
    """
    from sparseg.datasets.cache import clear_cache

    folder = _folder(cache)
    _print(folder, clear_cache(folder), "freed")
    return 0


def _folder(cache: Path | None) -> Path:
    from sparseg.datasets.cache import default_folder

    return default_folder() if cache is None else cache


def _print(folder: Path, size: CacheSize, word: str) -> None:
    from sparseg.cli.output import print_pairs

    print_pairs({"cache": folder, word: f"{size.num_cases} cases, {size.num_bytes / 1e6:.1f} MB"})
