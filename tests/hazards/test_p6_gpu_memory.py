"""P6: GPU memory runs out at the n-th window; the run finishes, and the labels are the same."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from hazards.figures import Figure
from predict.threshold_model import tiny_card, tiny_net
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings


def image_file(path: Path) -> Path:
    values = np.random.default_rng(0).integers(-100, 300, (40, 24, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def labels_of(predictor: Predictor, image: Path) -> np.ndarray:
    return predicted(predictor, image)[0]


def predicted(predictor: Predictor, image: Path) -> tuple[np.ndarray, list[str]]:
    """Labels, and what the row of the case will warn of."""
    output = image.parent / "labels.nii.gz"
    result = predictor.predict_file(image, output)
    assert {found.code for found in result.warnings} <= {"out-of-memory"}
    return np.asarray(nibabel.load(output).dataobj), [found.message for found in result.warnings]


@pytest.mark.parametrize("failures", [1, 2, 3, 4])
def test_p6_memory_runs_out_at_every_window(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    figure: Figure,
    failures: int,
) -> None:
    """A network that fails `failures` times in a row, for every first call, on a device that is not the host.

    `cpu:0` is such a device to the windows, and the same to torch.
    """
    image = image_file(tmp_path / "image.nii")
    net = tiny_net()
    settings = PredictSettings(
        device="cpu:0", sums_device="cpu:0", batch_size=4, keep_empty=True, previews=True
    )
    predictor = Predictor(net, tiny_card(net, foreground_crop=False), settings)
    expected = labels_of(predictor, image)
    forward, calls = SparseUNETR.forward, 0
    failing: set[int] = set()

    def failing_forward(self: SparseUNETR, *args: Tensor, **kwargs: object) -> Tensor:
        nonlocal calls
        calls += 1
        found = forward(self, *args, **kwargs)  # its hooks have run, as when only the last layer fails
        if calls in failing:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return found

    monkeypatch.setattr(SparseUNETR, "forward", failing_forward)
    assert np.array_equal(labels_of(predictor, image), expected)
    num_calls = calls
    assert num_calls == 4  # 4 x 2 x 2 windows, four at a time
    different = 0
    for first in range(1, num_calls + 1):
        calls, failing = 0, set(range(first, first + failures))
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sparseg"):
            labels, warned = predicted(predictor, image)
        different += not np.array_equal(labels, expected)
        said = [record.getMessage() for record in caplog.records]
        assert said == warned == [f"out of memory: going on with {what}" for what in ORDER[:failures]]
    figure("P6", "labels differ after running out of memory", different, of=num_calls)
    assert different == 0


ORDER = ("2 windows at a time", "1 window at a time", "sums on the host", "network on the CPU")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_p6_a_real_gpu_with_little_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half of what one batch takes is allowed."""
    image = image_file(tmp_path / "image.nii")
    net = tiny_net()
    card = tiny_card(net, foreground_crop=False)
    expected = labels_of(Predictor(net, card, PredictSettings(keep_empty=True)), image)
    settings = PredictSettings(device="cuda", sums_device="cuda", batch_size=12, keep_empty=True)
    predictor = Predictor(net, card, settings)
    labels_of(predictor, image)
    total = torch.cuda.get_device_properties("cuda").total_memory
    share = 0.5 * torch.cuda.max_memory_reserved() / total
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(share)
        with caplog.at_level(logging.WARNING, logger="sparseg"):
            found = labels_of(predictor, image)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory: going on with" in caplog.text
    assert np.mean(found == expected) > 0.999
