"""Nearest axes without nibabel agree with nibabel's."""

import numpy as np
from nibabel.orientations import io_orientation

from sparseg.preprocessing.orientation import ras_axes


def test_axes_are_those_of_nibabel():
    rng = np.random.default_rng(0)
    for _ in range(500):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = turn * rng.uniform(0.3, 5, 3)
        axes, signs = io_orientation(affine).T
        order = [int(np.flatnonzero(axes == direction)[0]) for direction in range(3)]
        assert ras_axes(affine) == (tuple(order), tuple(bool(signs[axis] < 0) for axis in order))
