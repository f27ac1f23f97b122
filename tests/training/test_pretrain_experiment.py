"""The experiment script on phantoms, two steps each, with its commands run in this process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sparseg.cli.main import run
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "experiment_pretrain.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiment_pretrain", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_dataset(root: Path) -> Path:
    """One training and one labelled test case, both CT phantoms."""
    for split, seed in (("Tr", 0), ("Ts", 1)):
        image, labels = make_phantom((16, 15, 14), num_classes=3, seed=seed)
        for folder in ("images", "labels"):
            (root / f"{folder}{split}").mkdir(parents=True)
        write_image(root / f"images{split}" / f"case{seed}.nii.gz", image)
        ids = labels.array[0].astype(np.uint8)
        write_label_map(root / f"labels{split}" / f"case{seed}.nii.gz", ids, labels.affine)
    content = {
        "name": "toy",
        "channel_names": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumor"},
        "training": [{"image": "imagesTr/case0.nii.gz", "label": "labelsTr/case0.nii.gz"}],
        "test": [{"image": "imagesTs/case1.nii.gz", "label": "labelsTs/case1.nii.gz"}],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_two_steps_on_phantoms(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def command(*arguments: object) -> None:
        called.append([str(argument) for argument in arguments])
        assert run(called[-1]) == 0, called[-1]

    monkeypatch.setattr(script, "sparseg", command)
    out = tmp_path / "result.json"
    options = [
        *("--work", str(tmp_path / "work"), "--dataset", str(write_dataset(tmp_path / "data"))),
        *("--out", str(out), "--preset", "test_tiny", "--crop", "16", "--spacing", "1.5"),
        *("--pretrain-steps", "2", "--train-steps", "2", "--seeds", "0", "1"),
    ]
    script.main(options)
    result = json.loads(out.read_text())
    assert [(row["variant"], row["seed"]) for row in result["rows"]] == [
        ("scratch", 0), ("pretrained", 0), ("scratch", 1), ("pretrained", 1),
    ]  # fmt: skip
    assert all(row["train_steps"] == 2 for row in result["rows"])
    assert [row.get("pretrain_steps") for row in result["rows"]] == [None, 2, None, 2]
    assert result["rows"][1]["pretrain_images"] == 1  # the test case stays unseen
    for variant in script.VARIANTS:
        summary = result["summary"][variant]["unseen"]
        values = [row["dice"]["unseen"] for row in result["rows"] if row["variant"] == variant]
        assert summary["mean"] == pytest.approx(sum(values) / 2)
        assert summary["range"] == [min(values), max(values)]
    assert sum("--init" in line for line in called) == 2
    done = len(called)
    script.main(options)
    assert len(called) == done  # nothing is done twice
