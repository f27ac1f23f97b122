"""Tables and bars of the report page. Everything that a user or a file named is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote

from sparseg.viewer.report_data import OTHER, STEPS, CaseRow, Colour, LabelRow, ModelRow, RunReport

_UNSURE = 0.6


def run_table(report: RunReport) -> str:
    """What was run: versions, models, settings."""
    rows: list[tuple[str, str]] = [
        ("When", escape(report.created)),
        ("Versions", escape(", ".join(f"{name} {version}" for name, version in report.versions.items()))),
        ("Device", escape(report.device + (f", {report.threads} thread(s)" if report.threads else ""))),
    ]
    rows += [
        (f"Model {number}" if len(report.models) > 1 else "Model", _model(model))
        for number, model in enumerate(report.models, start=1)
    ]
    rows += [("Settings", _settings(report)), ("Memory and time", _cost(report))]
    body = "".join(f"<tr><th>{name}</th><td>{content}</td></tr>" for name, content in rows if content)
    return f'<table class="facts">{body}</table>'


def _model(model: ModelRow) -> str:
    lines = [f"<strong>{escape(model.model)}</strong>"]
    if model.weights_sha256:
        lines.append(f'weights SHA-256 <code class="hash">{escape(model.weights_sha256)}</code>')
    if model.token_counts:
        lines.append(tokens_line(model.token_counts))
    if model.overlap is not None:
        lines.append(f"overlap of windows {model.overlap:g}")
    return "<br>".join(lines)


def tokens_line(counts: Sequence[int]) -> str:
    """Tokens per window that enter, and that each pruning stage keeps."""
    if len(counts) == 1:
        return f"{counts[0]} tokens per window, none pruned"
    kept = ", ".join(f"{count} ({_percent(count, counts[0])})" for count in counts[1:])
    return f"tokens per window: {counts[0]}; kept after stage 1 to {len(counts) - 1}: {kept}"


def _settings(report: RunReport) -> str:
    said = {
        "mirrored": ", ".join(report.mirror) or "no",
        "empty windows": "run" if report.keep_empty else "skipped",
        **{name: _value(value) for name, value in report.reading.items() if _is_set(value)},
        **{name: _value(value) for name, value in report.cleanup.items() if _is_set(value)},
    }
    return "; ".join(f"{escape(name.replace('_', ' '))}: {escape(text)}" for name, text in said.items())


def _cost(report: RunReport) -> str:
    """The peak of the process beside what was expected, and what was changed to save memory."""
    lines = []
    peak = max((row.process_peak_bytes for row in report.cases), default=0)
    if peak:
        lines.append(f"peak of the process {_gib(peak)}")
    expected = report.expected
    if expected is not None:
        lines.append(
            f"expected at most {_gib(expected.memory_bytes)} (allowed {_gib(expected.allowed_bytes)}) "
            f"and {seconds_text(expected.seconds)}"
        )
        if expected.changes:
            lines.append(f"to save memory: {escape(', '.join(expected.changes))}")
    return "<br>".join(lines)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _warnings(row: CaseRow) -> str:
    return "".join(
        f'<p class="small"><strong>warning</strong> <code>{escape(found.code)}</code> '
        f"{escape(found.message)}</p>"
        for found in row.warnings
    )


def _is_set(value: object) -> bool:
    return value not in (None, [], 0.0, "refuse")


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def share_bar(steps: Mapping[str, float]) -> str:
    """A bar with the share of each part of the time, and the same in words."""
    total = sum(steps.values())
    if total <= 0:
        return ""
    parts, words = [], []
    for name, seconds in steps.items():
        share = 100 * seconds / total
        kind = STEPS.index(name) if name in STEPS else len(STEPS)
        parts.append(f'<i class="step{kind}" style="width:{share:.3f}%" title="{name} {share:.1f} %"></i>')
        words.append(
            f'<span><i class="swatch step{kind}"></i>{name} <b>{_percent(seconds, total)}</b> '
            f"{seconds_text(seconds)}</span>"
        )
    label = ", ".join(f"{name} {_percent(seconds, total)}" for name, seconds in steps.items())
    return (
        f'<div class="bar" role="img" aria-label="{label}">{"".join(parts)}</div>'
        f'<p class="key">{"".join(words)}</p>'
    )


def total_steps(rows: Iterable[CaseRow]) -> dict[str, float]:
    """Seconds per part over all cases, in order."""
    total: dict[str, float] = {}
    for row in rows:
        for name, seconds in row.steps().items():
            total[name] = total.get(name, 0.0) + seconds
    return {name: total[name] for name in (*STEPS, OTHER) if name in total}


def cases_table(rows: Sequence[CaseRow], colours: Mapping[str, Colour]) -> str:
    """One line per case."""
    head = (
        '<tr><th>Case</th><th>Status</th><th>Found</th><th class="number">Windows run</th>'
        '<th class="number">Skipped</th><th class="number">Seconds</th></tr>'
    )
    body = "".join(_case_line(number, row, colours) for number, row in enumerate(rows))
    return f'<div class="wide"><table class="cases"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _case_line(number: int, row: CaseRow, colours: Mapping[str, Colour]) -> str:
    if not row.is_ok:
        return (
            f'<tr class="failed" id="case-{number}"><td>{escape(row.case)}</td><td>error</td>'
            f'<td colspan="4"><code>{escape(row.code)}</code> {escape(row.message)}</td></tr>'
        )
    return (
        f'<tr><td><a href="#case-{number}">{escape(row.case)}</a></td><td>ok</td>'
        f"<td>{volume_chips(row.volumes_ml, colours)}{_warnings(row)}</td>"
        f'<td class="number">{row.num_windows}</td><td class="number">{row.num_windows_skipped}</td>'
        f'<td class="number">{sum(row.steps().values()):.1f}</td></tr>'
    )


def volume_chips(volumes_ml: Mapping[str, float], colours: Mapping[str, Colour]) -> str:
    """Each structure found with its volume, and the names of those that were not."""
    found = {name: volume for name, volume in volumes_ml.items() if volume > 0}
    missing = [name for name in volumes_ml if name not in found]
    chips = "".join(
        f'<span class="chip">{swatch(colours.get(name))}{escape(name)} <b>{volume_text(volume)}</b></span>'
        for name, volume in found.items()
    )
    rest = f'<span class="small">not found: {escape(", ".join(missing))}</span>' if missing else ""
    return f'<div class="chips">{chips}{rest}</div>'


def statistics_table(labels: Mapping[str, LabelRow], colours: Mapping[int, Colour]) -> str:
    """Numbers of each label; those without voxels are in the list of what was not found."""
    rows = "".join(_label_line(name, found, colours) for name, found in labels.items() if found.voxels)
    if not rows:
        return '<p class="small">No structure was found.</p>'
    head = (
        '<tr><th>Structure</th><th class="number">Volume</th><th class="number">Voxels</th>'
        '<th class="number">Centroid, mm (R, A, S)</th><th class="number">Mean confidence</th>'
        "<th>Border</th></tr>"
    )
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _label_line(name: str, found: LabelRow, colours: Mapping[int, Colour]) -> str:
    place = ", ".join(f"{value:.1f}" for value in found.centroid_mm) if found.centroid_mm else ""
    sure = found.mean_confidence
    unsure = ' class="number warn"' if sure is not None and sure < _UNSURE else ' class="number"'
    border = '<span class="warn">may be cut off</span>' if found.touches_border else ""
    return (
        f"<tr><td>{swatch(colours.get(found.label))}{escape(name)}</td>"
        f'<td class="number">{volume_text(found.volume_ml)}</td><td class="number">{found.voxels:,}</td>'
        f'<td class="number">{place}</td><td{unsure}>{"" if sure is None else f"{sure:.2f}"}</td>'
        f"<td>{border}</td></tr>"
    )


def swatch(colour: Colour | None) -> str:
    """A small square of a colour."""
    if colour is None:
        return ""
    red, green, blue = colour
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'


def volume_text(volume_ml: float) -> str:
    """A volume to three digits or so."""
    return f"{volume_ml:,.0f} ml" if volume_ml >= 100 else f"{volume_ml:.3g} ml"


def seconds_text(seconds: float) -> str:
    """Seconds, finer where they are few."""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"


def link_to(name: str) -> str:
    """A relative address of a file, as an attribute's value."""
    return escape(quote(name))


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"
