"""Probabilities and uncertainty agree with the labels and with the plain way, on every grid."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

from predict.test_finish import GRIDS, make_record, random_logits
from predict.threshold_model import BRATS, tiny_card, tiny_net
from sparseg.errors import InputError, ResourceError, VolumeError
from sparseg.predict.decide import make_decision
from sparseg.predict.maps import MapRecorder, map_paths, map_values, removed_on_error
from sparseg.predict.predictor import labels_on_original_grid
from sparseg.preprocessing.restore import background_fill, restore_logits
from sparseg.volumes.nifti import read_nifti
from sparseg.volumes.nifti_maps import write_maps

NAMES = {0: "background", 1: "liver", 5: "tumour"}
BRATS_NAMES = {0: "background", 1: "oedema", 2: "necrosis", 3: "enhancing tumour"}
BOTH = ("probabilities", "uncertainty")


def record_maps(folder, record, logits, *, kinds=BOTH, regions=None, names=NAMES):
    """Write maps of logits; return the labels, and the maps as read back `[n, H0, W0, D0]`."""
    card = tiny_card(tiny_net(), labels=names, regions=regions or {})
    with MapRecorder(kinds, record, names, regions or {}) as maps:
        labels = labels_on_original_grid(logits, record, card, on_slab=maps.on_slab)
        written = maps.write(folder / "a.nii.gz", record.original_affine)
    return labels, {kind: read_nifti(folder / path) for kind, path in written.items()}


@pytest.mark.parametrize("spacing", ["finer", "mixed"])
@pytest.mark.parametrize("grid", GRIDS)
def test_equal_to_the_softmax_of_restored_logits(grid, spacing, tmp_path):
    record = make_record(grid, spacing)
    logits = random_logits(record, 3)
    labels, maps = record_maps(tmp_path, record, logits)
    full = torch.from_numpy(restore_logits(logits.numpy(), record, fill=background_fill(3)))
    chance = full.softmax(dim=0).numpy()
    found = maps["probabilities"].array
    assert found.shape == (3, *record.original_shape)
    np.testing.assert_allclose(found, chance, atol=0.5 / 255 + 1e-5)
    np.testing.assert_allclose(maps["uncertainty"].array[0], 1 - chance.max(axis=0), atol=0.5 / 255 + 1e-5)
    for volume in maps.values():
        np.testing.assert_allclose(volume.affine, record.original_affine, atol=1e-5)
    # The label is the most probable class; where bytes tie it is one of the most probable.
    numbers = np.searchsorted([0, 1, 5], labels)
    of_label = np.take_along_axis(found, numbers[None], axis=0)[0]
    np.testing.assert_array_equal(of_label, found.max(axis=0))
    assert len(np.unique(labels)) == 3


def test_outside_the_crop_is_background_for_certain(tmp_path):
    record = make_record("oblique, permuted and flipped", "finer")
    logits = torch.zeros(3, *record.model_shape)
    _, maps = record_maps(tmp_path, record, logits)
    inside = int(np.prod(record.crop_shape))
    chance, uncertainty = maps["probabilities"].array, maps["uncertainty"].array[0]
    outside = chance[0] == 1
    assert outside.sum() == outside.size - inside > 0
    assert not chance[1:, outside].any()
    assert not uncertainty[outside].any()
    np.testing.assert_allclose(chance[:, ~outside], 1 / 3, atol=1e-6)
    np.testing.assert_allclose(uncertainty[~outside], 2 / 3, atol=1e-6)


def test_regions_have_a_probability_each(tmp_path):
    record = make_record("permuted", "coarser")
    logits = random_logits(record, 3)
    labels, maps = record_maps(tmp_path, record, logits, regions=BRATS, names=BRATS_NAMES)
    full = torch.from_numpy(restore_logits(logits.numpy(), record, fill=background_fill(3, regions=True)))
    chance = full.sigmoid().numpy()
    found = maps["probabilities"].array
    np.testing.assert_allclose(found, chance, atol=0.5 / 255 + 1e-5)
    least_sure = np.maximum(chance, 1 - chance).min(axis=0)
    np.testing.assert_allclose(maps["uncertainty"].array[0], 1 - least_sure, atol=0.5 / 255 + 1e-5)
    decided = make_decision(BRATS_NAMES, BRATS)(torch.from_numpy(found) - 0.5).numpy()
    is_tie = (np.abs(found - 0.5) < 1 / 255).any(axis=0)
    np.testing.assert_array_equal(decided[~is_tie], labels[~is_tie])
    assert is_tie.mean() < 0.05


@pytest.mark.parametrize("kind", BOTH)
def test_one_kind_is_the_same_alone(kind, tmp_path):
    record = make_record("flipped", "finer")
    logits = random_logits(record, 3)
    _, both = record_maps(tmp_path / "both", record, logits)
    _, alone = record_maps(tmp_path / "alone", record, logits, kinds=(kind,))
    assert list(alone) == [kind]
    np.testing.assert_array_equal(alone[kind].array, both[kind].array)
    assert [path.name for path in (tmp_path / "alone/maps").iterdir()] == [f"a_{kind}.nii.gz"]


def test_bytes_of_known_logits():
    logits = torch.tensor([[0.0, 30.0, -1000.0], [0.0, -30.0, 1000.0]]).repeat(1, 30)[:, None, :, None]
    found = map_values(logits, BOTH, exclusive=True)[:, 0, :, 0]
    expected = [[128, 255, 0], [128, 0, 255], [128, 0, 0]]
    assert found.tolist() == [row * 30 for row in expected]
    assert map_values(logits, ("uncertainty",), exclusive=False).flatten().tolist() == [128, 0, 0] * 30
    assert logits[0, 0, 1, 0] == 30


def test_the_file_says_what_its_maps_are(tmp_path):
    record = make_record("aligned", "coarser")
    record_maps(tmp_path, record, random_logits(record, 3))
    raw = gzip.decompress((tmp_path / "maps/a_probabilities.nii.gz").read_bytes())
    size = int.from_bytes(raw[352:356], "little")
    comment = raw[360 : 352 + size].rstrip(b"\0")
    assert json.loads(comment) == {"maps": ["background", "liver", "tumour"]}
    slope = np.frombuffer(raw[112:116], "<f4")[0]
    assert slope == np.float32(1 / 255)
    assert np.frombuffer(raw[70:72], "<i2")[0] == 2  # unsigned bytes


def test_no_more_than_one_map_is_made_at_a_time(tmp_path):
    alive = 0

    def maps():
        nonlocal alive
        for number in range(3):
            alive += 1
            assert alive == 1
            yield np.full((4, 3, 2), 51 * number, np.uint8)
            alive -= 1

    write_maps(tmp_path / "m.nii.gz", maps(), ["a", "b", "c"], (4, 3, 2), np.eye(4))
    found = read_nifti(tmp_path / "m.nii.gz").array
    np.testing.assert_allclose(
        found, np.arange(3)[:, None, None, None] * 0.2 * np.ones((3, 4, 3, 2)), atol=1e-6
    )


def test_a_disk_that_returns_other_bytes_leaves_nothing(tmp_path, monkeypatch):
    real = gzip.GzipFile.write

    def flip(self, data):
        return real(self, bytes(data)[:-1] + bytes([bytes(data)[-1] ^ 1]))

    monkeypatch.setattr("gzip.GzipFile.write", flip)
    with pytest.raises(VolumeError, match="read back equal"):
        write_maps(tmp_path / "m.nii.gz", [np.ones((4, 3, 2), np.uint8)], ["a"], (4, 3, 2), np.eye(4))
    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(ResourceError, match="TMPDIR") as caught:
        record_maps(tmp_path, make_record("aligned", "coarser"), torch.zeros(3, 1, 1, 1))
    assert caught.value.code == "maps-file"


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/maps").symlink_to(tmp_path / "elsewhere")
    record = make_record("aligned", "coarser")
    with pytest.raises(InputError) as caught:
        record_maps(tmp_path / "out", record, random_logits(record, 3))
    assert caught.value.code == "output-escapes"
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("output", "stem"),
    [("a.nii.gz", "a"), ("a.seg.nrrd", "a"), ("a.b.dcm", "a.b"), ("a.nii.nii.gz", "a.nii"), ("a.x", "a.x")],
)
def test_names(output, stem, tmp_path):
    paths = map_paths(tmp_path / output)
    assert paths == {kind: tmp_path / "maps" / f"{stem}_{kind}.nii.gz" for kind in BOTH}


def test_after_an_error_nothing_stays(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_text("x")
    with pytest.raises(KeyboardInterrupt), removed_on_error(paths):
        raise KeyboardInterrupt
    assert not paths[0].exists()
    paths[0].write_text("x")
    with removed_on_error(paths):
        pass
    assert paths[0].exists()
