"""Row X4: what identifies a patient in the input appears in nothing that is written or printed."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import sys
import traceback

import numpy as np
import pytest

from predict.threshold_model import NAMES, save_tiny_model
from sparseg.cli.main import run
from sparseg.models.segmenter import SparseUNETR
from sparseg.viewer.report_page import write_report_page
from sparseg.volumes.io import read_volume
from sparseg.volumes.nifti_writer import write_label_map

from .figures import rounds
from .phi_markers import (
    FOLDER,
    MARKER,
    NUM_MARKERS,
    marked_nifti,
    marked_series,
    markers_below,
    markers_in,
)

WHAT = "markers found in what is written or printed"


def require_clean(folder, figure, *, but=""):
    """Expect no marker in any file below, in no name, and none of the folder that the inputs came from."""
    found = markers_below(folder, but=but)
    figure("X4", WHAT, sum(map(len, found.values())), of=NUM_MARKERS)
    assert found == {}


@pytest.fixture
def command(capsys, caplog, figure):
    """Return the command line as a function that checks what it prints and logs, at the finest level."""
    caplog.set_level(logging.DEBUG)

    def call(*arguments, code=0):
        caplog.clear()
        returned = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        # A path that the user gave may be said again; what it holds may not.
        said = (printed.out + printed.err + caplog.text).replace(FOLDER, "")
        found = markers_in(said.encode())
        figure("X4", WHAT, len(found), of=NUM_MARKERS)
        assert found == []
        assert returned == code, printed.err

    return call


def test_x4_the_search_finds_markers(tmp_path):
    """A test that looks for nothing would pass for ever."""
    marked_nifti(tmp_path / "a.nii.gz")
    assert list(markers_below(tmp_path)) == ["a.nii.gz"]
    assert markers_below(tmp_path, but=".gz") == {}
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert {found[-2:] for found in MARKER.findall(content)} == {b"09", b"10", b"11", b"12", b"13"}
    series = marked_series(tmp_path / "s")
    found = markers_in((series / "000").read_bytes())
    assert {bytes(item[-2:]) for item in found} == {b"01", b"02", b"04", b"05", b"06", b"07", b"08"}


@pytest.fixture
def ward(tmp_path):
    """A folder of inputs with a name that says too much."""
    (tmp_path / FOLDER).mkdir()
    return tmp_path / FOLDER


@pytest.fixture
def names_used():
    """Every name that is opened for writing, made or renamed during the test, outside of the inputs."""
    names, listening = [], [True]

    def listen(event, arguments):
        if not listening or event not in ("open", "os.mkdir", "os.rename", "os.link", "os.symlink"):
            return
        writes = event != "open" or (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        if writes:
            names.extend(str(item) for item in arguments[: 2 if "rename" in event else 1])

    sys.addaudithook(listen)  # stays for ever, and does nothing from the end of the test on
    yield names
    listening.clear()


OPTIONS = {
    "nii.gz": ("--save", "probabilities", "--save", "uncertainty", "--largest-component", "all"),
    "seg.nrrd": (),
    "dicom-seg": (),
    "rtstruct": (),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_x4_predict_with_report_page_and_previews(command, figure, tmp_path, ward, names_used, kind):
    model = save_tiny_model(tmp_path / "model")
    inputs = [marked_series(ward / "series")]
    shutil.make_archive(str(ward / "packed"), "zip", inputs[0])
    inputs.append(ward / "packed.zip")
    if kind in ("nii.gz", "seg.nrrd"):
        marked_nifti(ward / "nifti.nii.gz")
        inputs.append(ward / "nifti.nii.gz")
    out = tmp_path / "out"
    names_used.clear()
    command("predict", *inputs, "--model", model, "--out", out, "--format", kind, *OPTIONS[kind])
    write_report_page(out)
    # Objects of DICOM carry the patient of their series, as the standard demands; see docs.
    require_clean(out, figure, but=".dcm" if kind in ("dicom-seg", "rtstruct") else "")
    rows = json.loads((out / "report.json").read_text())["cases"]
    assert [row["status"] for row in rows] == ["ok"] * len(inputs)
    assert len(names_used) > len(inputs)
    said = [name for name in names_used if markers_in(name.encode())]
    figure("X4", WHAT, len(said), of=NUM_MARKERS)
    assert said == []


def test_x4_info(command, tmp_path):
    marked_nifti(tmp_path / "nifti.nii.gz")
    for path in (tmp_path / "nifti.nii.gz", marked_series(tmp_path / "series")):
        command("info", path)


@pytest.mark.parametrize("kind", ["nifti.nii.gz", "series"])
def test_x4_a_crash_says_nothing_of_the_patient(figure, tmp_path, ward, monkeypatch, kind):
    """A fault of ours, not an error: the traceback is all that is left, and no half file."""
    marked_nifti(ward / "nifti.nii.gz")
    marked_series(ward / "series")

    def crash(*_):
        raise ZeroDivisionError("a fault in the network")

    monkeypatch.setattr(SparseUNETR, "forward", crash)
    arguments = ["predict", ward / kind, "--model", save_tiny_model(tmp_path / "model"), "--out"]
    with pytest.raises(ZeroDivisionError) as caught:
        run([str(argument) for argument in (*arguments, tmp_path / "out")])
    text = "".join(traceback.format_exception(caught.value))
    found = markers_in(text.encode())
    figure("X4", WHAT, len(found), of=NUM_MARKERS)
    assert found == []
    assert list((tmp_path / "out").glob("**/*.nii.gz")) == []


def test_x4_errors_and_their_report(command, figure, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    marked_nifti(tmp_path / "good.nii.gz")
    marked_nifti(tmp_path / "nan.nii.gz", spoil=True)
    marked_series(tmp_path / "hole", spoil=True)
    inputs = [tmp_path / name for name in ("good.nii.gz", "nan.nii.gz", "hole")]
    out = tmp_path / "out"
    command("predict", *inputs, "--model", model, "--out", out, code=1)
    for path in inputs[1:]:
        command("info", path, code=2)
    rows = json.loads((out / "report.json").read_text())["cases"]
    assert [row["status"] for row in rows] == ["ok", "error", "error"]
    require_clean(out, figure)


def marked_dataset(data, names, *, dicom=False):
    """A dataset in Decathlon layout all of whose files name a patient."""
    for name in ("imagesTr", "labelsTr"):
        (data / name).mkdir(parents=True)
    entries = []
    for seed, name in enumerate(names):
        image = f"imagesTr/{name}" if dicom else f"imagesTr/{name}.nii.gz"
        if dicom:
            marked_series(data / image)
            volume = read_volume(data / image)
            ids = (volume.array[0] > np.quantile(volume.array, 0.8)).astype(np.uint8)
            write_label_map(data / f"labelsTr/{name}.nii.gz", ids, volume.affine)
        else:
            marked_nifti(data / image, seed=seed)
            marked_nifti(data / f"labelsTr/{name}.nii.gz", seed=seed, labels=True)
        entries.append({"image": image, "label": f"labelsTr/{name}.nii.gz"})
    names = {str(number): name for number, name in NAMES.items()}
    content = {"name": "toy", "channel_names": {"0": "CT"}, "labels": names, "training": entries}
    (data / "dataset.json").write_text(json.dumps(content))
    return data


TINY = ("--preset", "test_tiny", "--max-steps", "1", "--set", "batch_size=1")


@pytest.mark.slow
def test_x4_training_and_what_its_model_writes(command, figure, tmp_path):
    """No marker in the run folder, and no case name in the model folder, which is passed on."""
    data, folder = marked_dataset(tmp_path / "data", ("mueller", "garcia")), tmp_path / "run"
    command("train", data, "--out", folder, *TINY)
    command("info", folder)
    for path in (folder / "best").iterdir():
        content = path.read_bytes()
        assert b"mueller" not in content
        assert str(tmp_path).encode() not in content
    out = tmp_path / "out"
    command("predict", data / "imagesTr" / "garcia.nii.gz", "--model", folder, "--out", out)
    references = tmp_path / "ref"
    references.mkdir()
    shutil.copy(data / "labelsTr" / "garcia.nii.gz", references)
    command("evaluate", "--pred", out, "--ref", references, "--out", out / "metrics.json")
    require_clean(out, figure)
    command("calibrate", folder, data, "--keep-ratios", 1.0, "--max-cases", 1)
    command("model", "verify", folder / "best", "--write")
    command("model", "verify", folder / "best")
    require_clean(folder, figure)


@pytest.mark.slow
@pytest.mark.parametrize("dicom", [False, True])
def test_x4_commands_on_a_dataset(command, figure, tmp_path, monkeypatch, dicom):
    """Findings, repaired copies, plans, prepared cases, pictures and synthetic subjects."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, out = marked_dataset(tmp_path / "data", ("a", "b", "c"), dicom=dicom), tmp_path / "out"
    if not dicom:
        (data / "labelsTr/c.nii.gz").unlink()
        marked_nifti(data / "labelsTr/c.nii.gz", seed=1, labels=True)  # that of another case: findings
    label = data / "labelsTr/a.nii.gz"
    command("check", data, "--workers", 1, "--out", out / "check", code=2 if dicom else 1)
    command("plan", data, "--out", out / "plan.yaml", "--preset", "test_tiny", "--no-measure", "--workers", 1)
    command("pretrain", data, "--out", out / "pretrain", *TINY)
    image = ("--image", data / "imagesTr/a.nii.gz", "--modality", "ct") if not dicom else ()
    command("synth", label, *image, "--to", out / "synth", "--num-cases", 1, "--workers", 1)
    if not dicom and rounds(1) > 1:  # its parts are commands of their own, and it takes long
        command("cv", data, "--out", out / "cv", "--folds", 2, *TINY)
    command("cache", "show")
    require_clean(out, figure)
    require_clean(tmp_path / "cache", figure)
