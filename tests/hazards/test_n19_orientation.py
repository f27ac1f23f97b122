"""Row N19: one anatomy stored in 48 axis orders, aligned and oblique, gives one prediction in the patient."""

from __future__ import annotations

import numpy as np
import pytest

from predict.grids import AXIS_ORDERS, stored_as, stored_back, turned
from predict.threshold_model import save_tiny_model, threshold_predictor
from sparseg.predict.predictor import Predictor
from sparseg.volumes.io import read_labels
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

DEGREES = {"aligned": (0.0, 0.0, 0.0), "oblique": (20.0, -7.0, 15.0)}


def predict_all(predictor, image, folder):
    """Yield, for each of the 48 orders, the labels put back into the first order."""
    for number, (order, signs) in enumerate(AXIS_ORDERS):
        stored = stored_as(image, order, signs)
        write_image(folder / "image.nii", stored)
        predictor.predict_file(folder / "image.nii", folder / f"{number}.nii")
        labels = read_labels(folder / f"{number}.nii")
        np.testing.assert_allclose(labels.affine, stored.affine, atol=1e-5)
        yield stored_back(labels.array[0], order, signs)


@pytest.mark.parametrize("name", DEGREES)
def test_n19_48_orders_without_resampling(monkeypatch, tmp_path, figure, name):
    image, truth = make_phantom((13, 11, 9), seed=6)
    predictor = threshold_predictor(monkeypatch)
    results = list(predict_all(predictor, turned(image, DEGREES[name]), tmp_path))
    assert len(results) == 48
    differ = [not np.array_equal(labels, truth.array[0]) for labels in results]
    figure("N19", "orientations with other labels in the patient", sum(differ), of=48)
    assert sum(differ) == 0


@pytest.mark.parametrize("name", DEGREES)
def test_n19_48_orders_with_resampling_and_a_real_network(tmp_path, figure, name):
    """A network sees the model grid only, so its labels must not depend on the stored order."""
    image, truth = make_phantom((12, 10, 9), spacing=(1.5, 1.0, 2.0), seed=7)
    folder = save_tiny_model(tmp_path / "model", spacing=(1.1, 1.3, 2.3))
    results = list(predict_all(Predictor.from_folder(folder), turned(image, DEGREES[name]), tmp_path))
    assert len(results) == 48
    assert len(np.unique(results[0])) > 1
    # Positions of other float32 headers differ in the last digits, so a tie may fall either way.
    mismatch = max(int(np.count_nonzero(labels != results[0])) for labels in results)
    share = mismatch / truth.array.size
    figure("N19", "share of voxels that differ, resampled, untrained network", share, limit=1e-3)
    assert share <= 1e-3
