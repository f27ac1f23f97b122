"""Tissues of a labelled volume: its structures, and the unlabelled rest divided by intensity.

Without that division everything around the structures would be one flat value, which no scan is; SynthSeg
(Billot et al. 2023, section 3.1) subdivides the background likewise.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_BINS = 256
_ROUNDS = 30
# Clusters nearer than this share of the intensity range are noise of one tissue.
_MIN_SEPARATION = 0.05
_BLOB_MM = 15.0
_SIGMA_VOX = 0.7
_MIN_WEIGHT = 1e-3


def clusters_of(values: np.ndarray, num_clusters: int) -> np.ndarray:
    """Return ascending cluster centres `[k]`, k <= `num_clusters`, of `values` (k-means on a histogram).

    Counts enter as square roots: air and fat are the most frequent by far, and would take all the centres.
    """
    low, high = np.quantile(values, (0.001, 0.999))
    if num_clusters == 1 or high <= low:
        return np.array([values.mean()])
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    middles, weights = (edges[:-1] + edges[1:]) / 2, np.sqrt(counts)
    centres = np.linspace(low, high, num_clusters)
    for _ in range(_ROUNDS):
        distance = np.abs(middles[:, None] - centres)
        nearest = distance.argmin(axis=1)
        sums = np.bincount(nearest, weights, num_clusters)
        totals = np.bincount(nearest, weights * middles, num_clusters)
        centres = np.divide(totals, sums, out=centres.copy(), where=sums > 0)
        # A centre between two tissues has no members; it goes where it is missed most.
        empty = np.flatnonzero(sums == 0)
        missed = np.argsort(-weights * distance.min(axis=1) ** 2, kind="stable")
        centres[empty] = middles[missed[: len(empty)]]
        centres.sort()
    return centres


def separate(centres: np.ndarray, gap: float) -> np.ndarray:
    """Leave out centres that follow their lower neighbour by less than `gap`."""
    kept = [float(centres[0])]
    for centre in centres[1:]:
        if centre - kept[-1] >= gap:
            kept.append(float(centre))
    return np.array(kept)


def divide_by_intensity(image: np.ndarray, rest: np.ndarray, num_clusters: int) -> np.ndarray:
    """Divide the unlabelled rest of an image into tissues, darkest first.

    Args:
        image: `[H,W,D]` float32.
        rest: `[H,W,D]`, True where nothing is labelled.
        num_clusters: Most tissues to make.

    Returns:
        `[H,W,D]` uint8 index of the tissue, of no meaning where labelled.
    """
    if not rest.any():
        return np.zeros(image.shape, np.uint8)
    # Lightly smoothed, so that noise does not become a speckle of tissues; over the rest alone, so that
    # structures do not get a halo.
    sums, weights = (ndimage.gaussian_filter(part, _SIGMA_VOX) for part in (image * rest, rest.astype("f4")))
    smooth = np.divide(sums, weights, out=np.zeros(image.shape, np.float32), where=weights > _MIN_WEIGHT)
    values = smooth[rest]
    low, high = np.quantile(image, (0.005, 0.995))
    centres = separate(clusters_of(values, num_clusters), _MIN_SEPARATION * (high - low))
    borders = (centres[1:] + centres[:-1]) / 2
    tissues: np.ndarray = np.digitize(smooth, borders).astype(np.uint8)
    return tissues


def divide_into_blobs(
    shape: tuple[int, ...], spacing: np.ndarray, num_clusters: int, rng: np.random.Generator
) -> np.ndarray:
    """Divide a grid into smooth random regions of equal share, where there is no image to go by.

    Returns:
        `[H,W,D]` uint8 index of the region.
    """
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, _BLOB_MM / spacing, mode="wrap")
    borders = np.quantile(smooth, np.arange(1, num_clusters) / num_clusters)
    regions: np.ndarray = np.digitize(smooth, borders).astype(np.uint8)
    return regions
