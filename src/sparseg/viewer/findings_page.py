"""The page of `sparseg check`: one offline file with a picture of every fault.

Everything is inside the file, nothing is fetched and no script runs; what users wrote is escaped. The page
holds slices of the images and the names of cases and files: treat it as the data themselves.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.findings import SEVERITIES, Finding
from sparseg.datasets.inspect import CaseReport
from sparseg.viewer.lenient import Shown, show_image, show_labels
from sparseg.viewer.slices import Row, draw_planes, label_centre, labelled_points, share_outside
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.volume import Volume

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:62em;padding:0 1em;color:#1a1a1a}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25em .6em;vertical-align:top;
border-bottom:1px solid #ddd;overflow-wrap:anywhere}section{margin:2.5em 0;border-top:2px solid #ddd}
img{max-width:100%;background:#000;display:block}.error{color:#b00020}.warning{color:#8a5a00}.note{color:#345}
.box{background:#f2f2f2;border-left:4px solid #999;padding:.5em 1em;margin:.5em 0}code{font-size:.95em}
.small{color:#555;font-size:.9em}
"""


@dataclass(frozen=True)
class _Opened:
    """The files of one case as far as they can be shown."""

    images: tuple[Shown, ...]
    labels: tuple[Shown, ...]

    @property
    def label_volumes(self) -> list[Volume]:
        return [shown.volume for shown in self.labels if shown.volume is not None]


def write_findings_page(
    path: Path,
    dataset: Dataset,
    reports: Sequence[CaseReport],
    findings: Sequence[Finding],
    *,
    max_pictures: int = 100,
    on_finding: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the page, in one piece or not at all.

    Slices go through the finding's position, else the middle of the labels, else that of the image. Outlines
    are drawn where the label's own header puts them, so a shifted or flipped label is seen to be. One case
    is in memory at a time (two for duplicates).

    Args:
        path: HTML file; its folder must exist.
        dataset: What was checked.
        reports: One per case.
        findings: Shown in this order within each severity, errors first.
        max_pictures: Further findings are listed without a picture.
        on_finding: Called with case and code of a finding when its section is done.

    Raises:
        VolumeError: the page cannot be written.
    """
    ordered = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    cases = {case.name: case for case in dataset.cases}
    pictured = [number for number, finding in enumerate(ordered) if finding.case in cases][:max_pictures]
    # Case by case, so that the files of a case are read once for all its findings.
    wanted: dict[str, list[int]] = {}
    for number in pictured:
        wanted.setdefault(ordered[number].case, []).append(number)
    contents: dict[int, str] = {}
    for name, numbers in wanted.items():
        chosen = {number: ordered[number] for number in numbers}
        contents |= _pictures(chosen, cases[name], dataset, reports, on_finding)
    for number, finding in enumerate(ordered):
        if number not in contents:
            over = finding.case in cases
            contents[number] = _box(f"No picture: the page shows {max_pictures}.") if over else ""
            on_finding(f"{finding.case or dataset.name}: {finding.code}")
    sections = [_section(number, finding, contents[number]) for number, finding in enumerate(ordered)]
    page = _page(dataset, reports, ordered, sections)
    write_bytes_atomically(path, page.encode(errors="replace"))


def _pictures(
    findings: Mapping[int, Finding],
    case: Case,
    dataset: Dataset,
    reports: Sequence[CaseReport],
    on_finding: Callable[[str], None],
) -> dict[int, str]:
    """The pictures of one case; its files are let go on return."""
    opened = _open(case, dataset)
    contents = {}
    for number, finding in findings.items():
        contents[number] = _picture(finding, case, opened, dataset, reports)
        on_finding(f"{finding.case}: {finding.code}")
    return contents


def _open(case: Case, dataset: Dataset) -> _Opened:
    images = tuple(show_image(path, case.series_uid) for path in case.images)
    grid = next((shown.volume for shown in images if shown.volume is not None), None)
    return _Opened(images, tuple(show_labels(case, dataset, grid)))


def _picture(
    finding: Finding, case: Case, opened: _Opened, dataset: Dataset, reports: Sequence[CaseReport]
) -> str:
    """The picture of a finding with what has to be said about it."""
    rows = _rows(finding, case, opened, dataset)
    other = _twin(finding, dataset, reports)
    if other is not None:
        rows = [Row(case.name, rows[0].image, rows[0].labels)] if rows else []
        rows += [
            Row(other.name, row.image, row.labels)
            for row in _rows(finding, other, _open(other, dataset), dataset)[:1]
        ]
    notes = "".join(
        _notes(case.images, opened.images, dataset) + _notes(case.label_files, opened.labels, dataset)
    )
    if not rows:
        return notes
    centre, what = _centre(finding, rows)
    png = draw_planes(rows, centre, dataset.labels, cross=finding.position_mm is not None)
    text = f"{finding.code} of {finding.case}"
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    place = ", ".join(f"{value:.1f}" for value in centre)
    return (
        f'<img alt="{escape(text)}" src="{source}">'
        f'<p class="small">Planes through {what} at ({place}) mm, RAS. Image window: 1st to 99th percentile. '
        f"Outlines lie where the label's own header puts them.</p>{_place_notes(rows[0], centre)}{notes}"
    )


def _place_notes(row: Row, centre: np.ndarray) -> str:
    """What lies outside the image, in words: the picture may not reach so far."""
    if row.image is None:
        return ""
    notes = []
    share = share_outside(row.image, labelled_points(row.labels))
    if share > 0:
        notes.append(_box(f"{100 * share:.3g} % of the labelled voxels lie outside the image."))
    if share_outside(row.image, centre[None]) > 0:
        notes.append(_box("The place lies outside the image: planes there are moved to the image's border."))
    return "".join(notes)


def _rows(finding: Finding, case: Case, opened: _Opened, dataset: Dataset) -> list[Row]:
    """The first readable channel; below it the channel a finding is about, if it is another one."""
    labels = opened.label_volumes
    named = dataset.channels if len(case.images) == len(dataset.channels) else ()
    rows: list[Row] = []
    for number, (path, shown) in enumerate(zip(case.images, opened.images, strict=True)):
        about = bool(finding.file) and str(path).endswith(finding.file)
        if shown.volume is not None and (not rows or about):
            title = named[number] if len(named) > 1 else "image"
            rows.append(Row(title, shown.volume, labels))
    return rows or ([Row("labels alone", None, labels)] if labels else [])


def _twin(finding: Finding, dataset: Dataset, reports: Sequence[CaseReport]) -> Case | None:
    """The case that holds the same image as that of the finding, if the finding is about that."""
    if "duplicate" not in finding.code and finding.repair != "drop-duplicate":
        return None
    hashes = {report.case: report.facts.image_hash for report in reports if report.facts is not None}
    own = hashes.get(finding.case)
    same = (c for c in dataset.cases if own and hashes.get(c.name) == own and c.name != finding.case)
    return next(same, None)


def _centre(finding: Finding, rows: Sequence[Row]) -> tuple[np.ndarray, str]:
    if finding.position_mm is not None:
        return np.array(finding.position_mm, float), "the place of the finding (red cross)"
    centre = label_centre(rows[0].labels)
    if centre is not None:
        return centre, "the middle of the labels"
    volume = next(volume for volume in (rows[0].image, *rows[0].labels) if volume is not None)
    return voxel_to_world(volume.affine, [(size - 1) / 2 for size in volume.shape]), "the middle"


def _notes(paths: Iterable[Path], shown: Iterable[Shown], dataset: Dataset) -> list[str]:
    """What could not be read or only with a liberty."""
    boxes = []
    for path, file in zip(paths, shown, strict=False):
        start = f"{_short(str(path), dataset)}: " + ("not shown; " if file.volume is None else "")
        boxes += [_box(start + note) for note in file.notes]
    return boxes


def _box(text: str) -> str:
    return f'<p class="box">{escape(text)}</p>'


def _section(number: int, finding: Finding, content: str) -> str:
    lines = [f"<p>{escape(finding.message)}</p>", f"<p>What to do: {escape(finding.remedy)}</p>"]
    if finding.file:
        lines.append(f'<p class="small">File: <code>{escape(finding.file)}</code></p>')
    if finding.repair:
        lines.append(f'<p class="small">check --fix can repair it: {escape(finding.repair)}</p>')
    head = f"{escape(finding.case)} &middot; " if finding.case else ""
    return (
        f'<section id="f{number}"><h2 class="{finding.severity}">{head}<code>{escape(finding.code)}</code> '
        f"({finding.severity})</h2>{''.join(lines)}{content}</section>"
    )


def _page(
    dataset: Dataset, reports: Sequence[CaseReport], findings: Sequence[Finding], sections: Sequence[str]
) -> str:
    usable = sum(report.facts is not None for report in reports)
    counts = {level: sum(f.severity == level for f in findings) for level in SEVERITIES}
    head = ", ".join(_plural(number, level) for level, number in counts.items())
    rows = "".join(_table_row(number, finding) for number, finding in enumerate(findings))
    table = (
        "<table><thead><tr><th>Severity</th><th>Case</th><th>Code</th><th>Finding</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        if findings
        else "<p>Nothing was found.</p>"
    )
    title = escape(f"Check of {dataset.name}")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{escape(dataset.describe())}</p>"
        f"<p><strong>{head}</strong>; {usable} of {len(reports)} cases can be used.</p>{table}"
        f"{''.join(sections)}</body></html>\n"
    )


def _table_row(number: int, finding: Finding) -> str:
    return (
        f'<tr><td class="{finding.severity}">{finding.severity}</td><td>{escape(finding.case)}</td>'
        f'<td><a href="#f{number}"><code>{escape(finding.code)}</code></a></td>'
        f"<td>{escape(finding.message)}</td></tr>"
    )


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _short(file: str, dataset: Dataset) -> str:
    """A path as the findings give it: relative to the dataset where it lies inside."""
    path, root = Path(file), dataset.root if dataset.root.is_dir() else dataset.root.parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file
