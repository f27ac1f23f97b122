"""`compare.html`: the whole comparison on one offline page.

Everything is inside the file, nothing is fetched and no script runs; names that users wrote are escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sparseg.compare.tables import (
    class_table,
    kept_table,
    notes,
    quality_table,
    speed_table,
    unfinished,
    verdicts,
)
from sparseg.metrics.scores import METRICS

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:76em;padding:0 1em;color:#1a1a1a}
table{border-collapse:collapse;width:100%;margin-bottom:1.5em;font-variant-numeric:tabular-nums}
td,th{text-align:right;padding:.25em .6em;vertical-align:top;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}img{max-width:100%;display:block}
tr.reference{background:#f2f5fa}tr.unfinished{background:#fff3e0}.small{color:#555;font-size:.9em}
.box{background:#fff3e0;border-left:4px solid #c77700;padding:.5em 1em;margin:.5em 0}
section{margin:2em 0;border-top:2px solid #ddd}
"""


def make_page(results: Mapping[str, Any], *, pareto: bytes, curves: bytes) -> str:
    """HTML of a comparison.

    Args:
        results: From `make_results`.
        pareto: PNG.
        curves: PNG.
    """
    title = f"Comparison on {results['dataset']}"
    left = unfinished(results)
    boxes = f'<div class="box">{_list(left)}</div>' if left else ""
    marks = {
        row["variant"]: "reference" if row["variant"] == results["reference"] else ""
        for row in results["rows"]
    }
    marks |= {row["variant"]: "unfinished" for row in results["rows"] if not row["complete"]}
    parts = [
        f"<h1>{escape(title)}</h1>{boxes}",
        _section("What the intervals say", _list(verdicts(results))),
        _section("Quality", _table(quality_table(results), marks)),
        _section("Speed", _table(speed_table(results), marks)),
        _section("Dice against throughput", _picture(pareto, "Dice against throughput")),
        _section("Training", _picture(curves, "training loss and validation Dice")),
        _section("Structures", "".join(_table(class_table(results, key), marks) for key in METRICS)),
    ]
    kept = kept_table(results)
    if len(kept) > 1:
        parts.append(_section("Patches of each class that selection keeps", _table(kept, marks)))
    parts.append(_section("Notes", _list(notes(results)[: -len(left) or None])))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(rows: Sequence[Sequence[str]], marks: Mapping[str, str]) -> str:
    head, *body = rows
    lines = "".join(f'<tr class="{marks.get(row[0], "")}">{_cells(row, "td")}</tr>' for row in body)
    return (
        f'<div class="wide"><table><thead><tr>{_cells(head, "th")}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cells(row: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)


def _picture(png: bytes, text: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<img alt="{escape(text)}" src="{source}">'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
