"""Grey values of a subject: painted tissue by tissue, or the real image with mild changes."""

from __future__ import annotations

import numpy as np

from sparseg.datasets.synth.config import SynthConfig
from sparseg.datasets.synth.deform import smooth_noise
from sparseg.datasets.synth.source import Source

_AIR_HU = -1000.0
# Noise and texture within a tissue of a CT; more is a mixture of tissues, such as bone and marrow.
_MAX_DEVIATION_HU = 25.0
_CONTRAST_CT = 0.02
# Air gives no MR signal, whatever the contrast.
_DARK = (0.0, 40.0)
_DARK_DEVIATION = (0.0, 10.0)
_TOP = 1000.0


def paint_tissues(
    tissues: np.ndarray, source: Source, config: SynthConfig, rng: np.random.Generator
) -> np.ndarray:
    """Return `[C,H,W,D]` float32: every voxel drawn from the Gaussian of its tissue, anew per channel.

    Args:
        tissues: `[H,W,D]` index of the tissue.
        source: Gives the means of CT.
        config: Settings.
        rng: Source of randomness.
    """
    channels = []
    for _ in range(config.channels or 1):
        means, deviations = (
            _draw_ct(source, config, rng) if config.modality == "ct" else _draw_mr(source, config, rng)
        )
        noise = rng.standard_normal(tissues.shape, dtype=np.float32)
        channels.append(means[tissues] + deviations[tissues] * noise)
    return np.stack(channels)


def vary_ct(
    image: np.ndarray, tissues: np.ndarray, source: Source, config: SynthConfig, rng: np.random.Generator
) -> np.ndarray:
    """Change a real CT `[1,H,W,D]` mildly: density by 2 %, each structure by `hu_jitter` (contrast agent)."""
    factor = np.float32(np.exp(rng.normal(0, _CONTRAST_CT)))
    shifts = rng.normal(0, config.hu_jitter, len(source.label_ids)).astype(np.float32)
    shifts[source.label_ids == 0] = 0
    changed: np.ndarray = (image - np.float32(_AIR_HU)) * factor + np.float32(_AIR_HU) + shifts[tissues]
    return changed


def bend_and_shade(
    image: np.ndarray, spacing: np.ndarray, config: SynthConfig, rng: np.random.Generator
) -> np.ndarray:
    """Apply gamma and a smooth multiplicative bias field to an MR image `[C,H,W,D]`, anew per channel."""
    extent = np.array(image.shape[1:]) * spacing
    changed = []
    for channel in image:
        exponent = np.float32(np.exp(rng.normal(0, config.gamma)))
        bent = np.clip(channel / np.float32(_TOP), 0, 1.5) ** exponent * np.float32(_TOP)
        strength = np.float32(rng.uniform(0, config.bias))
        field = smooth_noise(rng, extent, config.bias_grid_mm, image.shape[1:])
        changed.append(bent * np.exp(strength * field))
    return np.stack(changed)


def _draw_ct(source: Source, config: SynthConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    jitter = rng.normal(0, config.hu_jitter, len(source.means))
    # Air is -1000 HU by definition: it varies less than tissue does.
    jitter[source.means < -800] *= 0.2
    deviations = np.minimum(source.deviations, _MAX_DEVIATION_HU) * rng.uniform(0.5, 1, len(source.means))
    return (source.means + jitter).astype(np.float32), deviations.astype(np.float32)


def _draw_mr(source: Source, config: SynthConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    means = rng.uniform(*config.class_mean, len(source.label_ids)).astype(np.float32)
    deviations = rng.uniform(*config.class_std, len(source.label_ids)).astype(np.float32)
    if source.image is not None:
        means[0], deviations[0] = rng.uniform(*_DARK), rng.uniform(*_DARK_DEVIATION)
    return means, deviations
