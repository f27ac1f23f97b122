"""One case of the report page: its numbers, where its time went, and its pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from sparseg.viewer.report_data import CaseRow, RunReport, RunStatistics
from sparseg.viewer.report_pictures import LOW_COLOUR, LOW_CONFIDENCE, Plane, draw_case, stage_colours
from sparseg.viewer.report_tables import (
    link_to,
    share_bar,
    statistics_table,
    swatch,
    tokens_line,
    volume_chips,
)
from sparseg.viewer.report_volumes import FOLDER
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.volume import Volume

_MAX_OPEN = 3
_TITLES = {
    "labels": "Labels",
    "tokens": "Tokens: how far each patch was worked on",
    "confidence": "Low confidence",
}


@dataclass(frozen=True)
class Place:
    """Where the parts of a page go.

    Attributes:
        out: The output folder.
        apart: Volumes and pictures lie beside the page, not in it.
    """

    out: Path
    apart: bool


def case_section(
    number: int,
    previews: Mapping[str, Volume],
    notes: Sequence[str],
    report: RunReport,
    statistics: RunStatistics,
    place: Place,
) -> str:
    """The part of the page about a case that has labels.

    Args:
        number: Its place among the report's cases.
        previews: Its previews, as far as they can be read.
        notes: What is to be said of the others.
        report: The run.
        statistics: Numbers of all cases.
        place: Where pictures go.
    """
    row = report.cases[number]
    labels = statistics.cases.get(row.case, {})
    content = [
        volume_chips(row.volumes_ml, report.colours_by_name),
        f"<h4>Where the time went</h4>{share_bar(row.steps())}{_tokens(row)}",
        "".join(f'<p class="box">{escape(note)}</p>' for note in notes),
        _pictures(row, previews, report, place),
        f"<h4>Structures</h4>{statistics_table(labels, report.colours)}" if labels else "",
    ]
    if "image" in previews:
        button = f'<button type="button" class="show" data-case="{number}">Show in the viewer</button>'
        content.insert(0, button)
    opened = " open" if len(report.cases) <= _MAX_OPEN else ""
    file = f'<span class="small">{escape(row.output)}</span>'
    return (
        f'<details class="case" id="case-{number}"{opened}>'
        f"<summary><h3>{escape(row.case)}</h3> {file}</summary>{''.join(content)}</details>"
    )


def _tokens(row: CaseRow) -> str:
    """Tokens kept in this case, which a deadline may have chosen for it alone."""
    lines = [tokens_line(model.token_counts) for model in row.models if model.token_counts]
    return f'<p class="small">{"; ".join(lines)}</p>' if lines else ""


def _pictures(row: CaseRow, previews: Mapping[str, Volume], report: RunReport, place: Place) -> str:
    if "image" not in previews:
        return '<p class="small">No pictures: the previews of this case were not kept or cannot be read.</p>'
    drawn, centre = draw_case(previews, report.colours, report.num_stages)
    legends = {"tokens": _token_legend(report.num_stages), "confidence": _confidence_legend()}
    rows = "".join(
        f"<figure><figcaption>{_TITLES[kind]}{legends.get(kind, '')}</figcaption>"
        f'<div class="planes">{"".join(_plane(row, kind, plane, place) for plane in planes)}</div></figure>'
        for kind, planes in drawn.items()
    )
    return f"<h4>Pictures</h4>{_place_note(centre)}{rows}"


def _place_note(centre: np.ndarray) -> str:
    where = ", ".join(f"{value:.1f}" for value in centre)
    return (
        f'<p class="small">Planes through the largest structure, at ({where}) mm RAS. Drawn from previews, '
        "which are thinned to at most 192 voxels along each axis: for measurements use the label file.</p>"
    )


def _plane(row: CaseRow, kind: str, plane: Plane, place: Place) -> str:
    """A picture with the patient's directions at its borders; all planes of a row have one scale."""
    if place.apart:
        name = f"{FOLDER}/{row.case}/{kind}-{plane.name}.png"
        write_bytes_atomically(place.out / name, plane.png)
        source, lazy = link_to(name), ' loading="lazy"'
    else:
        source, lazy = f"data:image/png;base64,{base64.b64encode(plane.png).decode()}", ""
    letters = "".join(
        f'<span class="{side}">{letter}</span>'
        for side, letter in zip(("left", "right", "bottom", "top"), plane.borders, strict=True)
    )
    # Beside the letters, space in proportion to millimetres keeps the scale equal at any width of the page.
    return (
        f'<div class="plane" style="flex-grow:{plane.width_mm:.2f}">{letters}'
        f'<img{lazy} alt="{escape(f"{kind}, {plane.name} plane of {row.case}")}" src="{source}" '
        f'style="aspect-ratio:{plane.width_mm:.3f}/{plane.height_mm:.3f}">'
        f'<span class="name">{plane.name}</span></div>'
    )


def _token_legend(num_stages: int) -> str:
    words = [f"pruned at stage {stage}" for stage in range(1, num_stages + 1)] + ["kept to the end"]
    items = "".join(
        f"<span>{swatch(colour)}{word}</span>"
        for colour, word in zip(stage_colours(num_stages).values(), words, strict=True)
    )
    dim = '<span><i class="swatch dim"></i>not run (empty or cropped)</span>'
    return f'<span class="key">{items}{dim}</span>'


def _confidence_legend() -> str:
    text = f"probability of the decision below {LOW_CONFIDENCE:g}, the stronger the lower"
    return f'<span class="key"><span>{swatch(LOW_COLOUR)}{text}</span></span>'
