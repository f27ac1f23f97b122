"""What only the whole set tells: cases that differ from all others, doubles, labels that hold nothing.

Every rule takes the cases that can be used with their facts, and gives findings. They are computed from facts
alone, so they stay the same whether a case was read now or remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from statistics import median

from sparseg.datasets.dataset import Case, Dataset, some
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.findings import Finding
from sparseg.datasets.safe_repairs import DROP_DUPLICATE

Measured = Sequence[tuple[Case, CaseFacts]]
Rule = Callable[[Dataset, Measured], Iterator[Finding]]

# Below this number of cases "the others" say little.
_MIN_CASES = 3
_MIN_CASES_FOR_RARE = 10
_RARE_SHARE = 0.02
_UNUSUAL_SPACING, _WRONG_SPACING = 3.0, 10.0
_TINY_MM, _HUGE_MM = 0.01, 50.0
# Air is -1000 HU, soft tissue around 0.
_AIR_HU, _TISSUE_HU = -500.0, -300.0
_SCALE_RATIO = 20.0


def set_findings(dataset: Dataset, measured: Measured) -> list[Finding]:
    """Apply every rule to the cases that can be used."""
    return list(chain.from_iterable(rule(dataset, measured) for rule in RULES)) if measured else []


def double_images(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """The same voxels twice: across training and validation that would be a leak."""
    del dataset
    first: dict[str, tuple[Case, CaseFacts]] = {}
    for case, facts in measured:
        other, before = first.setdefault(facts.image_hash, (case, facts))
        if other is case:
            continue
        same = facts.content_key == before.content_key
        how = "with the same labels" if facts.label_hash == before.label_hash else "with other labels"
        place = "" if same or how == "with other labels" else ", at another place"
        yield Finding(
            "case-duplicate",
            "error",
            f"every image must be in the dataset once; received the voxels of case {other.name} again, "
            f"{how}{place}",
            "remove one of the two" if same else "find out which of the two is right, and remove the other",
            case.name,
            str(case.image),
            repair=DROP_DUPLICATE if same else "",
        )


def copied_labels(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """The same drawing under two different images."""
    del dataset
    first: dict[str, tuple[Case, CaseFacts]] = {}
    for case, facts in measured:
        if not facts.label_hash or not _structures(facts):
            continue
        other, before = first.setdefault(facts.label_hash, (case, facts))
        if other is not case and before.image_hash != facts.image_hash:
            yield _warning(
                "label-copied",
                f"every image should have labels of its own; received those of case {other.name} again",
                "check which image the labels belong to",
                case,
            )


def constant_images(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """A channel that shows nothing."""
    for case, facts in measured:
        flat = [
            f"{name} is {channel.minimum:g} everywhere"
            for name, channel in zip(dataset.channels, facts.channels, strict=True)
            if channel.minimum == channel.maximum
        ]
        if flat:
            yield _warning(
                "image-constant",
                f"an image should show something; received {', '.join(flat)}",
                "export the image again, or leave the case out",
                case,
                label=False,
            )


def empty_labels(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """Label files that hold background only."""
    del dataset
    for case, facts in measured:
        if facts.label_counts is not None and not _structures(facts):
            yield _warning(
                "label-empty",
                "labels should hold a structure; received background only",
                "right if the patient has none of the structures; otherwise complete the labels",
                case,
            )


def missing_structures(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """Declared structures that nobody has drawn, or hardly anybody; ids that nobody has named."""
    labelled = [_structures(facts) for _, facts in measured if facts.label_counts is not None]
    if not labelled:
        return
    seen = Counter(chain.from_iterable(labelled))
    if not dataset.labels and seen:
        yield _of_set(
            "labels-undeclared",
            "note",
            f"the names of labels may be declared; received ids {', '.join(map(str, sorted(seen)))}",
            "name them in sparseg.yaml",
        )
    names = {label_id: name for label_id, name in dataset.labels.items() if label_id}
    absent = [f"{name} ({label_id})" for label_id, name in names.items() if label_id not in seen]
    if absent:
        yield _of_set(
            "label-unused",
            "warning",
            f"every declared structure should occur in a case; received none with {some(absent)}",
            "correct the list of labels, or add cases; a network cannot learn what no case shows",
        )
    few = max(1, int(_RARE_SHARE * len(labelled)))
    rare = [f"{names[i]} ({i}) in {seen[i]}" for i in names if 0 < seen[i] <= few]
    if rare and len(labelled) >= _MIN_CASES_FOR_RARE:
        yield _of_set(
            "label-rare",
            "warning",
            f"a structure should occur in more than {few} of {len(labelled)} cases; received {some(rare)}",
            "add cases that show it: most parts of a cross-validation will hold none",
        )


def labels_in_background(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """Labelled voxels that lie where the image shows nothing, as after a shift within the same grid."""
    del dataset
    for case, facts in measured:
        shown = [c for c in facts.channels if c.minimum < c.maximum and c.foreground_quantiles]
        if not shown or not _structures(facts):
            continue
        # 90 % of the labelled voxels in every channel at its smallest value.
        if all(channel.foreground_quantiles[180] <= channel.minimum for channel in shown):
            yield _warning(
                "label-in-background",
                "labels should lie on the patient; received labels on empty background",
                "check that image and labels belong together and were not shifted or flipped",
                case,
            )


def labels_in_air(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """CT labels that mostly lie in air, while those of the other cases lie in tissue."""
    del dataset
    drawn = [(case, facts.channels[0].foreground_quantiles[100]) for case, facts in measured if _ct(facts)]
    if len(drawn) < _MIN_CASES or median(value for _, value in drawn) <= _TISSUE_HU:
        return
    for case, value in drawn:
        if value < _AIR_HU:
            yield _warning(
                "label-in-air",
                f"labels should lie on tissue as in the other cases; received a median of {value:.0f} HU",
                "check that image and labels belong together and were not shifted or flipped",
                case,
            )


def mixed_orientation(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """Axes stored in different orders: harmless here, but often the trace of an earlier conversion."""
    del dataset
    counts = Counter(facts.codes for _, facts in measured)
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    others = [f"{case.name} ({facts.codes})" for case, facts in measured if facts.codes != usual]
    listed = ", ".join(f"{number} {codes}" for codes, number in counts.most_common())
    yield _of_set(
        "orientation-mixed",
        "note",
        f"stored axes point in different directions; received {listed}: {some(others)}",
        "nothing: all are turned to RAS on reading",
    )


def unusual_spacing(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """Voxel sizes that no scanner makes, or that differ from the set's as a wrong unit would."""
    del dataset
    usual = [median(facts.spacing[axis] for _, facts in measured) for axis in range(3)]
    for case, facts in measured:
        ratio = max(max(a / b, b / a) for a, b in zip(facts.spacing, usual, strict=True) if a > 0 < b)
        size = " x ".join(f"{edge:g}" for edge in facts.spacing)
        if max(facts.spacing) < _TINY_MM or min(facts.spacing) > _HUGE_MM or ratio > _WRONG_SPACING:
            yield _warning(
                "spacing-unit",
                f"voxels should have a plausible size; received {size} mm, usual is {_sizes(usual)} mm",
                "check the unit and the spacing in the header",
                case,
                label=False,
            )
        elif ratio > _UNUSUAL_SPACING and len(measured) >= _MIN_CASES:
            yield Finding(
                "spacing-unusual",
                "note",
                f"spacing is more than three times off the usual {_sizes(usual)} mm; received {size} mm",
                "check the header if you did not expect it; thick slices are no fault",
                case.name,
                str(case.image),
            )


def intensity_scale(dataset: Dataset, measured: Measured) -> Iterator[Finding]:
    """CT values that were stored without their offset of -1024, or a channel on another scale."""
    if len(measured) < _MIN_CASES:
        return
    for number, name in enumerate(dataset.channels):
        having = [(case, facts.channels[number]) for case, facts in measured if number < len(facts.channels)]
        if not having:
            continue
        low = median(channel.minimum for _, channel in having)
        wide = median(channel.maximum - channel.minimum for _, channel in having)
        for case, channel in having:
            width = channel.maximum - channel.minimum
            if low < _AIR_HU and channel.minimum >= 0 < width:
                yield _warning(
                    "intensity-offset",
                    f"{name} should be in HU as in the other cases; received no value below "
                    f"{channel.minimum:g}, where the others reach {low:g}",
                    "export the image again with its rescale intercept applied",
                    case,
                    label=False,
                )
            elif width > 0 < wide and max(width / wide, wide / width) > _SCALE_RATIO:
                yield _warning(
                    "intensity-scale",
                    f"{name} should have a range like the other cases; received {channel.minimum:g} to "
                    f"{channel.maximum:g}, usual is a width of {wide:g}",
                    "check the scaling of the image",
                    case,
                    label=False,
                )


RULES: tuple[Rule, ...] = (
    double_images,
    copied_labels,
    constant_images,
    empty_labels,
    labels_in_background,
    labels_in_air,
    unusual_spacing,
    intensity_scale,
    missing_structures,
    mixed_orientation,
)


def _structures(facts: CaseFacts) -> list[int]:
    """Ids other than background that the labels hold."""
    return [label_id for label_id, number in (facts.label_counts or {}).items() if label_id and number]


def _ct(facts: CaseFacts) -> bool:
    """Whether the case is labelled and its first channel looks like CT in HU."""
    return bool(_structures(facts)) and facts.channels[0].minimum < _AIR_HU


def _sizes(spacing: Sequence[float]) -> str:
    return " x ".join(f"{edge:g}" for edge in spacing)


def _warning(code: str, message: str, remedy: str, case: Case, *, label: bool = True) -> Finding:
    file = case.label_files[0] if label and case.labelled else case.image
    return Finding(code, "warning", message, remedy, case.name, str(file))


def _of_set(code: str, severity: str, message: str, remedy: str) -> Finding:
    return Finding(code, "note" if severity == "note" else "warning", message, remedy)
