"""Row P3: `--resume` over a stump, changed weights and a changed input reuses nothing stale."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from predict.batch_tools import SHAPE, write_cases
from predict.threshold_model import classify, save_tiny_model
from sparseg.cli.main import run
from sparseg.models.segmenter import SparseUNETR
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys):
    """Return `predict(more...)` -> (exit code, lines), after a first run over three cases."""
    monkeypatch.setattr(SparseUNETR, "forward", classify)
    write_cases(tmp_path / "in", 3)
    model = save_tiny_model(tmp_path / "model")

    def command(*more):
        arguments = ["predict", str(tmp_path / "in"), "--model", str(model), "--out", str(tmp_path / "out")]
        code = run([*arguments, "--no-report", *more])
        printed = capsys.readouterr()
        assert printed.err == ""
        return code, [line.partition(" (")[0] for line in printed.out.splitlines()]

    assert command()[0] == 0
    return command


def labels(tmp_path, seed):
    return np.asarray(nib.load(tmp_path / "out" / f"case_{seed:03d}.nii.gz").dataobj)


def truth(seed):
    return make_phantom(SHAPE, seed=seed)[1].array[0]


def spoil_stump(tmp_path):
    (tmp_path / "out" / "case_001.nii.gz").write_bytes(bytes(200))
    return ["case_001: redone: its file is not the one that was written"], 1


def spoil_bit(tmp_path):
    path = tmp_path / "out" / "case_001.nii.gz"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return ["case_001: redone: its file is not the one that was written"], 1


def spoil_row(tmp_path):
    path = tmp_path / "out" / "report" / "case_001.json"
    path.write_bytes(path.read_bytes()[:80])
    return ["case_001: redone: no row vouches for its file"], 1


def change_input(tmp_path):
    write_image(tmp_path / "in" / "case_001.nii.gz", make_phantom(SHAPE, seed=50)[0])
    return ["case_001: redone: the input changed"], 50


@pytest.mark.parametrize("fault", [spoil_stump, spoil_bit, spoil_row, change_input])
def test_p3_one_case_that_no_longer_holds(predict, tmp_path, fault, figure):
    why, seed = fault(tmp_path)
    code, lines = predict("--resume")
    stale = not np.array_equal(labels(tmp_path, 1), truth(seed))
    figure("P3", "stale results reused", stale, of=1)
    assert not stale
    outputs = [f"case_{number:03d}: {tmp_path / 'out'}/case_{number:03d}.nii.gz" for number in range(3)]
    assert (code, sorted(lines)) == (0, sorted([*outputs, *why]))
    assert predict("--resume")[1] == outputs


def test_p3_other_weights_redo_everything(predict, tmp_path, monkeypatch, figure):
    """The new model calls everything what comes next in its list."""
    save_tiny_model(tmp_path / "other", labels={0: "background", 1: "tumor", 2: "liver"})
    exchange_models(tmp_path)
    monkeypatch.setattr(SparseUNETR, "forward", lambda net, image: classify(net, image)[:, [0, 2, 1]])
    code, lines = predict("--resume")
    stale = sum(not np.array_equal(labels(tmp_path, seed), swapped(truth(seed))) for seed in range(3))
    figure("P3", "stale results reused", stale, of=3)
    assert (code, stale) == (0, 0)
    assert sum("redone: settings, model card or version changed" in line for line in lines) == 3


def test_p3_weights_of_another_hash(predict, tmp_path):
    import torch

    from predict.threshold_model import tiny_card, tiny_net
    from sparseg.checkpoints.folder import save_model

    net = tiny_net()
    with torch.no_grad():
        next(net.parameters()).add_(1)
    save_model(tmp_path / "other", net, tiny_card(net))
    exchange_models(tmp_path)
    code, lines = predict("--resume")
    assert code == 0
    assert [line for line in lines if "redone" in line] == [
        f"case_{number:03d}: redone: the weights changed" for number in range(3)
    ]
    assert sum("redone" in line for line in predict("--resume")[1]) == 0


def swapped(ids):
    return np.array([0, 2, 1])[ids]


def exchange_models(tmp_path):
    """Put the other model in the place of the first."""
    (tmp_path / "model").rename(tmp_path / "first")
    (tmp_path / "other").rename(tmp_path / "model")
