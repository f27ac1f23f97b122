"""Everything that a comparison leaves for its reader: table, numbers, pictures and page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sparseg.compare.figures import draw_curves, draw_pareto
from sparseg.compare.page import make_page
from sparseg.compare.plan import Comparison
from sparseg.compare.tables import as_csv, markdown
from sparseg.volumes.atomic import write_bytes_atomically

RESULTS, CSV, TEXT = "results.json", "table.csv", "table.md"
PARETO, CURVES, PAGE = "pareto.png", "curves.png", "compare.html"


def write_report(found: Comparison, results: Mapping[str, Any]) -> None:
    """Write every file, each whole or not at all.

    Args:
        found: The comparison.
        results: From `make_results`.

    Raises:
        VolumeError: the disk refuses.
    """
    numbers = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    pareto, curves = draw_pareto(results), draw_curves(found)
    contents = {
        RESULTS: numbers.encode(),
        CSV: as_csv(results).encode(),
        TEXT: markdown(results).encode(),
        PARETO: pareto,
        CURVES: curves,
        PAGE: make_page(results, pareto=pareto, curves=curves).encode(errors="replace"),
    }
    for name, content in contents.items():
        write_bytes_atomically(found.folder / name, content)
