"""The volumes that the page's viewer shows: in the page, or each case in a script of its own beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseg.errors import SparsegError
from sparseg.viewer.report_data import CaseRow, inside
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.volume import Volume

KINDS = ("image", "labels", "tokens", "confidence")
FOLDER = "report"
# Pictures of a case that lie beside the page, where it would be too large with them inside.
PICTURES = tuple(f"{kind}-{plane}.png" for kind in KINDS[1:] for plane in ("axial", "coronal", "sagittal"))


def preview_files(out: Path, row: CaseRow) -> dict[str, Path]:
    """The previews of a case that exist within the folder."""
    found = {kind: inside(out, row.previews.get(kind, "")) for kind in KINDS}
    return {kind: path for kind, path in found.items() if path is not None}


def read_previews(files: Mapping[str, Path]) -> tuple[dict[str, Volume], list[str]]:
    """Read what can be read, and say of the rest why not: a page without a picture is better than none."""
    volumes, notes = {}, []
    for kind, path in files.items():
        try:
            volumes[kind] = read_labels(path) if kind in {"labels", "tokens"} else read_volume(path)
        except SparsegError as error:
            notes.append(f"The {kind} preview cannot be shown: {error.code}.")
    return volumes, notes


def embedded(files: Mapping[str, Path]) -> dict[str, str]:
    """Kind -> file in base64."""
    return {kind: base64.b64encode(path.read_bytes()).decode() for kind, path in files.items()}


def embedded_bytes(files: Mapping[str, Path]) -> int:
    """Length of what `embedded` would give."""
    return sum((path.stat().st_size + 2) // 3 * 4 for path in files.values())


def write_volume_script(out: Path, case: str, files: Mapping[str, Path]) -> str:
    """Write `report/<case>.js`, which hands the volumes to the page that loads it; return its relative name.

    A script, because a page opened from a disk may load scripts, but not read other files.

    Raises:
        VolumeError: the folder cannot be written to.
    """
    name = f"{FOLDER}/{case}.js"
    content = f"sparsegVolumes({script_json(case)}, {script_json(embedded(files))});\n"
    write_bytes_atomically(out / name, content.encode())
    return name


def script_json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
