"""Rules for the model grid: target spacing, prepared shapes, patch and roi."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.fingerprint import Fingerprint, Numbers
from sparseg.planning.choice import Choice, numbers
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.preprocessing.pipeline import SAME_SPACING
from sparseg.preprocessing.resample import num_voxels
from sparseg.shapes import Triple

ANISOTROPY = 3.0
_AXES = ("right-left", "anterior-posterior", "superior-inferior")


def target_spacing(fingerprint: Fingerprint) -> Choice[Numbers]:
    """Choose the voxel edges of the model grid, mm on RAS axes.

    The median of the cases per axis. Where the coarsest axis is more than 3 times as coarse as both others
    and has less than a third of their voxels (thick slices), it takes the 10th percentile of the cases, but
    never less than the next coarser axis: images with thinner slices then do not lose them, at the price of
    interpolating the thick ones.
    """
    spacing, shape = fingerprint.spacing.median, fingerprint.shape.median
    axis = max(range(3), key=lambda a: spacing[a])
    others = [a for a in range(3) if a != axis]
    coarse = spacing[axis] > ANISOTROPY * max(spacing[a] for a in others)
    few = shape[axis] * ANISOTROPY < min(shape[a] for a in others)
    result = list(spacing)
    why = f"median of the cases; they range from {_range(fingerprint)} mm"
    if coarse and few:
        result[axis] = max(fingerprint.spacing.p10[axis], *(spacing[a] for a in others))
        why += f"; slices are thick ({spacing[axis]:.4g} mm), so {_AXES[axis]} takes the 10th percentile"
    return Choice((round(result[0], 4), round(result[1], 4), round(result[2], 4)), why)


def prepared_shape(case: CaseFacts, settings: PreprocessConfig) -> Triple:
    """Voxels of the case on the model grid, after the crop to its foreground.

    The place of the box is not among the facts: where it touches the image's edge the true shape is smaller
    by up to the margin.
    """
    box = case.body_shape if isinstance(settings.intensity, CTIntensity) else case.nonzero_shape
    edges = []
    for axis in range(3):
        edge, spacing = case.shape[axis], case.spacing[axis]
        if settings.foreground_crop:
            edge = min(edge, box[axis] + 2 * math.ceil(settings.margin_mm / spacing))
        ratio = 1.0 if settings.spacing is None else settings.spacing[axis] / spacing
        edges.append(edge if abs(ratio - 1) <= SAME_SPACING else num_voxels(edge, ratio))
    return edges[0], edges[1], edges[2]


def choose_patch(spacing: Numbers, base: int) -> Choice[Triple]:
    """Choose patch edges, in voxels, that make patches about cubic in mm.

    The finest axis takes the preset's edge; every other axis the power of two that comes nearest to the same
    length, at least 1.

    Args:
        spacing: Voxel edges in mm.
        base: Patch edge of the preset, a power of two.
    """
    length = base * min(spacing)
    halvings = [max(0, round(math.log2(edge * base / length))) for edge in spacing]
    a, b, c = (max(1, base >> count) for count in halvings)
    mm = numbers(tuple(edge * size for edge, size in zip((a, b, c), spacing, strict=True)))
    return Choice((a, b, c), f"patches of {mm} mm at this spacing: as near to cubes as powers of two come")


def choose_roi(shapes: Sequence[Triple], patch: Triple, max_patches: int) -> Choice[Triple]:
    """Choose the window, in voxels.

    Per axis as many patches as cover the median prepared volume, at most `max_patches`, at least 2 (4 with
    patches below 8 voxels, whose decoder pools the token grid more often).

    Args:
        shapes: Prepared shape of every case.
        patch: Patch edges.
        max_patches: Most patches per axis.
    """
    ordered = [sorted(shape[axis] for shape in shapes) for axis in range(3)]
    # The upper median: half of the cases or more are covered.
    median = [edges[len(edges) // 2] for edges in ordered]
    least = max(2, 16 // max(patch))
    counts = [max(least, min(max_patches, -(-edge // p))) for edge, p in zip(median, patch, strict=True)]
    roi = (counts[0] * patch[0], counts[1] * patch[1], counts[2] * patch[2])
    why = (
        f"{numbers(tuple(counts))} patches; the median prepared volume has {numbers(tuple(median))} voxels, "
        f"and a window takes at most {max_patches} patches per axis"
    )
    return Choice(roi, why)


def _range(fingerprint: Fingerprint) -> str:
    low, high = fingerprint.spacing.minimum, fingerprint.spacing.maximum
    return f"{numbers(low)} to {numbers(high)}"
