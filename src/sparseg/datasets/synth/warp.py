"""One subject's grid and the map from its voxels to those of the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sparseg.datasets.synth.config import SynthConfig
from sparseg.datasets.synth.deform import integrate, min_jacobian, random_affine, random_velocity
from sparseg.datasets.synth.source import Source
from sparseg.errors import ConfigError
from sparseg.shapes import Triple
from sparseg.volumes.geometry import voxel_to_world

_PLANES = 16


@dataclass(frozen=True)
class Warp:
    """Map from a subject's voxels to the source's.

    Attributes:
        shape: The subject's voxels (H, W, D).
        spacing: Its voxel edges in mm `[3]`.
        affine: Its 4x4, voxel -> RAS mm; same axes and centre as the source.
        matrix: 3x3 affine part, about the centre, in mm along the voxel axes.
        shift: `[3]` translation in mm.
        displacement: `[3,h,w,d]` at the nodes, in node units.
        step: `[3]` mm between nodes.
    """

    shape: Triple
    spacing: np.ndarray
    affine: np.ndarray
    matrix: np.ndarray
    shift: np.ndarray
    displacement: np.ndarray
    step: np.ndarray


def draw_warp(source: Source, config: SynthConfig, rng: np.random.Generator) -> Warp:
    """Draw grid, affine part and deformation of a subject.

    Raises:
        ConfigError: the deformation is so strong for its distance of control points that it folds.
    """
    shape, spacing, affine = _grid(source, config)
    matrix = random_affine(
        rng, rotation_degrees=config.rotation_degrees, scaling=config.scaling, shear=config.shear
    )
    shift = rng.uniform(-config.translation_mm, config.translation_mm, 3)
    box = np.maximum(np.array(shape) - 1, 1) * spacing
    velocity, step = random_velocity(rng, box, deviation=config.deform_mm, control=config.deform_grid_mm)
    displacement = integrate(velocity)
    if min_jacobian(displacement) <= 0:
        raise ConfigError(
            "the deformation must not fold",
            received=f"deform_mm {config.deform_mm:g}, deform_grid_mm {config.deform_grid_mm:g}",
            remedy="lower deform_mm or raise deform_grid_mm",
            where="synth",
            code="synth-fold",
        )
    return Warp(shape, spacing, affine, matrix, shift, displacement, step)


def warp_tissues(source: Source, warp: Warp) -> np.ndarray:
    """Return the subject's tissues `[H,W,D]` uint16, nearest neighbour; 0 beyond the source."""
    return _sample(source.tissues, warp, source, order=0, outside=0)


def warp_image(source: Source, warp: Warp) -> np.ndarray:
    """Return the source's image on the subject's grid, `[C,H,W,D]` float32, linear; darkest beyond it."""
    if source.image is None:
        return np.zeros((0, *warp.shape), np.float32)
    # A coarser grid would alias what lies between its samples.
    ratio = warp.spacing / source.spacing
    sigma = np.where(ratio > 1.2, 0.42 * ratio, 0.0)
    channels = []
    for channel in source.image:
        smooth = ndimage.gaussian_filter(channel, sigma) if sigma.any() else channel
        outside = float(np.quantile(channel, 0.001))
        channels.append(_sample(smooth, warp, source, order=1, outside=outside))
    return np.stack(channels)


def _grid(source: Source, config: SynthConfig) -> tuple[Triple, np.ndarray, np.ndarray]:
    old = np.array(source.tissues.shape)
    spacing = source.spacing if config.spacing is None else np.array(config.spacing)
    shape = config.shape or tuple(np.maximum(1, np.ceil(old * source.spacing / spacing - 1e-3)).astype(int))
    affine = source.affine.copy()
    affine[:3, :3] *= spacing / source.spacing
    centre = voxel_to_world(source.affine, (old - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return (int(shape[0]), int(shape[1]), int(shape[2])), spacing, affine


def _sample(array: np.ndarray, warp: Warp, source: Source, *, order: int, outside: float) -> np.ndarray:
    result = np.empty(warp.shape, array.dtype)
    for start, where in _source_indices(warp, source):
        part = result[start : start + _PLANES]
        # grid-constant: an outermost voxel reaches half a voxel beyond its centre.
        ndimage.map_coordinates(array, where, output=part, order=order, mode="grid-constant", cval=outside)
    return result


def _source_indices(warp: Warp, source: Source) -> Iterator[tuple[int, np.ndarray]]:
    """Yield, slab by slab, the first plane and the source indices `[3,h,W,D]` of the subject's voxels."""
    middle = (np.array(source.tissues.shape) - 1) / 2
    for start in range(0, warp.shape[0], _PLANES):
        planes = min(_PLANES, warp.shape[0] - start)
        voxels = np.indices((planes, *warp.shape[1:]), dtype=np.float32)
        voxels[0] += start
        to_nodes = _column(warp.spacing / warp.step)
        moved = np.stack(
            [
                ndimage.map_coordinates(part, voxels * to_nodes, order=1, mode="nearest")
                for part in warp.displacement
            ]
        )
        centred = (voxels - _column((np.array(warp.shape) - 1) / 2)) * _column(warp.spacing)
        place = centred + moved * _column(warp.step)
        to_source = (warp.matrix / source.spacing[:, None]).astype(np.float32)
        indices = np.tensordot(to_source, place, axes=1)
        yield start, indices + _column(warp.shift / source.spacing + middle)


def _column(values: np.ndarray) -> np.ndarray:
    """Shape `[3]` -> `[3,1,1,1]` float32."""
    return values.astype(np.float32).reshape(3, 1, 1, 1)
