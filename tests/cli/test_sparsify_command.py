"""`sparseg sparsify`: from a dense run, model folder or MONAI's UNETR to a sparse run."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from cli.test_train_command import make_dataset
from sparseg.checkpoints.adapters import from_monai_unetr
from sparseg.checkpoints.folder import load_model, read_card

DENSE = (
    "--preset",
    "test_tiny",
    "--set",
    "model.pruning_stages=[]",
    "--set",
    "model.keep_ratio=1.0",
    "--fold",
    "1",
)


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
    """A dataset and a dense run on it, which no test changes."""
    from sparseg.cli.main import run

    root = tmp_path_factory.mktemp("sparsify")
    make_dataset(root / "data")
    options = (*DENSE, "--max-steps", "1", "--set", "batch_size=1", "--set", "augment.noise=[0.5,0.01]")
    assert run(["train", str(root / "data"), "--out", str(root / "dense"), *options]) == 0
    return root


@pytest.fixture
def sparsify(sparseg, dense_run, tmp_path):
    """Return `sparsify(options...)` of the dense run into `sparse`."""

    def command(*options, model=dense_run / "dense", data=dense_run / "data"):
        return sparseg("sparsify", model, data, "--out", tmp_path / "sparse", *options)

    return command


@pytest.mark.slow
def test_a_dense_run_becomes_a_sparse_one_that_can_go_on(sparsify, sparseg, dense_run, tmp_path):
    outcome = sparsify("--max-steps", "2", "--keep-ratio", "0.5", "--set", "validate_every=2")
    assert outcome.code == 0, outcome.err
    assert "; the new one prunes before block 1, 2, 3\n" in outcome.err
    assert "tokens per window of 8x16x8: 64 > 32 > 16 > 8\n" in outcome.out
    sparse, teacher = load_model(tmp_path / "sparse"), load_model(tmp_path / "sparse" / "teacher")
    dense = load_model(dense_run / "dense")
    assert sparse.token_counts() == [64, 32, 16, 8]
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in dense.state_dict().items())
    stored = yaml.safe_load((tmp_path / "sparse" / "config.yaml").read_text())
    assert (stored["batch_size"], stored["augment"]["noise"]) == (1, [0.5, 0.01])  # of the dense run
    assert (stored["distill"]["weight"], stored["selection"]["warmup_share"]) == (1.0, 0.3)
    assert stored["fold"] == 1
    cards = [read_card(tmp_path / name) for name in ("sparse", "sparse/teacher")]
    assert cards[0].preprocess == cards[1].preprocess == read_card(dense_run / "dense").preprocess
    splits = [path / "splits.json" for path in (tmp_path / "sparse", dense_run / "dense")]
    assert splits[0].read_bytes() == splits[1].read_bytes()

    again = ("train", dense_run / "data", "--out", tmp_path / "sparse", "--resume", "--max-steps", "3")
    outcome = sparseg(*again)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("3 steps in ")
    sparsify().refused("a new run needs an empty folder")


@pytest.mark.slow
def test_the_best_model_of_a_run_brings_its_folds_and_settings(sparsify, dense_run, tmp_path):
    """The new model must be judged on cases that the dense one did not see."""
    outcome = sparsify("--max-steps", "1", model=dense_run / "dense" / "best")
    assert outcome.code == 0, outcome.err
    stored = yaml.safe_load((tmp_path / "sparse" / "config.yaml").read_text())
    assert (stored["fold"], stored["batch_size"]) == (1, 1)
    splits = [path / "splits.json" for path in (tmp_path / "sparse", dense_run / "dense")]
    assert splits[0].read_bytes() == splits[1].read_bytes()


@pytest.mark.slow
def test_folds_given_anew_begin_with_the_first(sparsify, dense_run, tmp_path):
    outcome = sparsify("--max-steps", "1", "--splits", dense_run / "dense" / "splits.json")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load((tmp_path / "sparse" / "config.yaml").read_text())["fold"] == 0


@pytest.mark.slow
def test_weights_of_monai_need_to_be_told_how_they_were_trained(sparsify, tmp_path):
    from monai.networks.nets.unetr import UNETR

    torch.manual_seed(0)
    source = UNETR(1, 3, 32, feature_size=2, hidden_size=24, mlp_dim=48, num_heads=4).eval()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "unetr.pt")
    options = ("--max-steps", "1", "--set", "batch_size=1", "--set", "model.num_heads=4")
    unetr = tmp_path / "unetr.pt"
    sparsify(*options, model=unetr).refused(unetr, "preprocessing they were trained with", "received none")
    ct = "preprocess={spacing: [2, 2, 2], intensity: {kind: ct, clip: [-100, 300]}}"
    outcome = sparsify(*options, "--set", ct, model=unetr)
    assert outcome.code == 0, outcome.err
    wanted = from_monai_unetr(source)
    found = load_model(tmp_path / "sparse" / "teacher")
    assert found.config == wanted.config
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(image), wanted(image))
    assert load_model(tmp_path / "sparse").token_counts() == [8, 2, 1, 1]
    assert read_card(tmp_path / "sparse").preprocess.spacing == (2.0, 2.0, 2.0)


def test_refusals_leave_nothing(sparsify, dense_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(dense_run / "data", other)
    text = (other / "dataset.json").read_text()
    (other / "dataset.json").write_text(text.replace('"tumor"', '"cyst"'))
    outcome = sparsify(data=other)
    assert outcome.code == 2
    assert f"error: {dense_run / 'dense'}: the dataset must have the labels and channels" in outcome.err
    assert "received {0: 'background', 1: 'liver', 2: 'cyst'}" in outcome.err
    sparsify("--set", "model.patch_size=8").refused("sizes of the dense one", "received model.patch_size")
    sparsify("--keep-ratio", "1.5").refused("keep_ratio")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    sparsify(model=tmp_path / "a.pt").refused(tmp_path / "a.pt", "weights of MONAI's UNETR", "received names")
    sparsify(model=tmp_path / "none").refused(tmp_path / "none", "a model folder holds")
    assert not (tmp_path / "sparse").exists()


def test_a_sparse_model_is_refused(sparsify, model_folder):
    sparsify(model=model_folder).refused("must be dense", "received pruning stages", "sparseg calibrate")
