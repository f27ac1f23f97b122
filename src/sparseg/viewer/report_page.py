"""The report of a prediction run as one HTML page that needs no network and no server.

Names of cases, labels and files are escaped, and the page's policy runs only the scripts whose hashes it
states: a name that is a script stays a name. The page holds slices of the images: treat it as the data
themselves.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path

from sparseg.viewer.report_case import Place, case_section
from sparseg.viewer.report_data import PAGE, RunReport, read_report
from sparseg.viewer.report_pictures import LOW_COLOUR, LOW_CONFIDENCE, stage_colours
from sparseg.viewer.report_tables import cases_table, run_table, share_bar, total_steps
from sparseg.viewer.report_volumes import (
    FOLDER,
    embedded,
    embedded_bytes,
    preview_files,
    read_previews,
    script_json,
    write_volume_script,
)
from sparseg.volumes.atomic import write_bytes_atomically

NIIVUE = "niivue-0.69.0.umd.js"
MAX_BYTES = 32 * 2**20
_PICTURE_BYTES = 600_000  # of one case, generously


def write_report_page(out: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Write `report.html` of an output folder, in one piece or not at all.

    Args:
        out: Folder with report.json and, where there are any, statistics.json and previews.
        max_bytes: Where the page would be larger, the volumes and pictures of each case go to files in the
            folder `report`, which the page loads as they are asked for.

    Returns:
        The page.

    Raises:
        InputError: no report, or not one of `sparseg predict`.
        VolumeError: the folder cannot be written to.
    """
    report, statistics = read_report(out)
    files = [preview_files(out, row) if row.is_ok else {} for row in report.cases]
    size = sum(embedded_bytes(some) + (_PICTURE_BYTES if some else 0) for some in files)
    place = Place(out, apart=size + len(_asset(NIIVUE)) > max_bytes)
    sections, volumes, viewable = [], [], []
    for number, (row, some) in enumerate(zip(report.cases, files, strict=True)):
        pictured, notes = read_previews(some)
        if "image" in pictured:
            readable = {kind: some[kind] for kind in pictured}
            script = None
            if place.apart:
                (out / FOLDER / row.case).mkdir(parents=True, exist_ok=True)
                script = write_volume_script(out, row.case, readable)
            else:
                volumes.append(_data_script(f"volumes-{number}", embedded(readable)))
            viewable.append({"number": number, "name": row.case, "script": script, "output": row.output})
        if row.is_ok:
            sections.append(case_section(number, pictured, notes, report, statistics, place))
    page = _page(report, sections, volumes, viewable, place)
    write_bytes_atomically(out / PAGE, page.encode(errors="replace"))
    return out / PAGE


def _page(
    report: RunReport,
    sections: Sequence[str],
    volumes: Sequence[str],
    viewable: Sequence[Mapping[str, object]],
    place: Place,
) -> str:
    scripts = [_asset(NIIVUE), _asset("report.js")] if viewable else []
    data = _data_script("report-data", _viewer_data(report, viewable)) if viewable else ""
    code = "".join(f"<script>{script}</script>" for script in scripts)
    body = (
        f"<header><h1>Segmentation report</h1><p><strong>{_headline(report)}</strong></p></header>"
        f"<main><h2>What was run</h2>{run_table(report)}{_time_section(report)}"
        f"<h2>Cases</h2>{cases_table(report.cases, report.colours_by_name)}"
        f"{_asset('viewer.html') if viewable else ''}"
        f"{'<h2>Case by case</h2>' if sections else ''}{''.join(sections)}</main>"
        "<footer>Not a medical device; for research. This page holds pictures of the images: share it as you "
        "would share them.</footer>"
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts, place)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>sparseg report</title><style>{_asset('report.css')}</style></head>"
        f"<body>{body}{data}{''.join(volumes)}{code}</body></html>\n"
    )


def _headline(report: RunReport) -> str:
    failed = sum(not row.is_ok for row in report.cases)
    done = len(report.cases) - failed
    return f"{done} of {len(report.cases)} cases done" + (f", {failed} failed" if failed else "")


def _time_section(report: RunReport) -> str:
    steps = total_steps(report.cases)
    if not steps:
        return ""
    return (
        f"<h2>Where the time went</h2><p>{sum(steps.values()):.1f} s over all cases, each step counted where "
        f"it ran, even if cases ran side by side.</p>{share_bar(steps)}"
    )


def _policy(scripts: Sequence[str], place: Place) -> str:
    """Scripts by hash only; files beside the page only where it needs them, the network never."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    beside = ["'self'", "file:"] if place.apart else []
    allowed = [*(f"'sha256-{digest}'" for digest in digests), *beside]
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(allowed)}" if allowed else "script-src 'none'",
            "style-src 'unsafe-inline'",
            f"img-src {' '.join(['data:', 'blob:', *beside])}",
            # Of `sparseg view`, for labels at full resolution; from a disk it allows nothing.
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _viewer_data(report: RunReport, viewable: Sequence[Mapping[str, object]]) -> dict[str, object]:
    labels = [
        {"id": label, "name": name, "colour": report.colours.get(label)}
        for label, name in report.labels.items()
    ]
    return {
        "cases": viewable,
        "labels": labels,
        "stages": list(stage_colours(report.num_stages).values()),
        "low": {"below": LOW_CONFIDENCE, "colour": LOW_COLOUR},
    }


def _data_script(name: str, value: object) -> str:
    return f'<script type="application/json" id="{name}">{script_json(value)}</script>'


@cache
def _asset(name: str) -> str:
    return (package_files("sparseg.viewer") / "assets" / name).read_text(encoding="utf-8")
