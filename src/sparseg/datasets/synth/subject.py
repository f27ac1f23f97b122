"""One synthetic subject from one labelled volume, after SynthSeg (Billot et al. 2023).

The tissues of the source are warped by a random affine map and a deformation that never folds, painted with
random intensities (or the real image is warped along), and put through a simple scanner. Nothing is mirrored:
names of labels may say left and right.
"""

from __future__ import annotations

import numpy as np

from sparseg.datasets.synth.acquire import acquire
from sparseg.datasets.synth.config import SynthConfig
from sparseg.datasets.synth.intensity import bend_and_shade, paint_tissues, vary_ct
from sparseg.datasets.synth.source import Source, prepare_source
from sparseg.datasets.synth.warp import draw_warp, warp_image, warp_tissues
from sparseg.volumes.volume import Volume


def make_subject(
    source_image: Volume | None, source_labels: Volume, config: SynthConfig, index: int
) -> tuple[Volume, Volume]:
    """Make subject number `index`; equal arguments give equal voxels.

    Args:
        source_image: `[C,H,W,D]`, or None with modality mr and intensity classes.
        source_labels: `[1,H,W,D]` ids on the same grid.
        config: Settings.
        index: Number of the subject, from 0.

    Returns:
        Image `[C,H,W,D]` int16 and labels `[1,H,W,D]` int32 on one grid with the axes and centre of the
        source.

    Raises:
        LabelError: nothing is labelled.
        GeometryError: image and labels on different grids.
        ConfigError: settings that need an image or one channel, or a deformation that folds.
    """
    return draw_subject(index, prepare_source(source_image, source_labels, config), config)


def draw_subject(index: int, source: Source, config: SynthConfig) -> tuple[Volume, Volume]:
    """Make subject number `index` of a prepared source; see `make_subject`."""
    # A stream per step: a setting of one step leaves the choices of the others as they are.
    place, paint, scan = (np.random.default_rng((config.seed, index, step)) for step in range(3))
    warp = draw_warp(source, config, place)
    tissues = warp_tissues(source, warp)
    if config.intensity == "classes":
        image = paint_tissues(tissues, source, config, paint)
    else:
        image = warp_image(source, warp)
        if config.modality == "ct":
            image = vary_ct(image, tissues, source, config, paint)
    if config.modality == "mr":
        image = bend_and_shade(image, warp.spacing, config, paint)
    return acquire(image, source.label_ids[tissues], warp.affine, config, scan)
