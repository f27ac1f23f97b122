"""A tiny dataset on disk."""

import json

import numpy as np
import pytest

from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom


@pytest.fixture
def toy(tmp_path):
    """Folder of three cases; the third is a test case without a label. Returns (root, write_json)."""
    root = tmp_path / "toy"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(("imagesTr/a", "imagesTr/b", "imagesTs/c")):
        image, labels = make_phantom((10, 9, 8), spacing=(1.5, 1.0, 2.0), num_classes=3, seed=seed)
        write_image(root / f"{name}.nii.gz", image)
        if "Tr" in name:
            ids = labels.array[0].astype(np.uint8)
            write_label_map(root / f"{name.replace('images', 'labels')}.nii.gz", ids, labels.affine)
    content = {
        "name": "toy",
        "channel_names": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumor"},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("a", "b")
        ],
        "test": ["./imagesTs/c.nii.gz"],
    }

    def write_json(**changes):
        merged = {key: value for key, value in (content | changes).items() if value is not None}
        (root / "dataset.json").write_text(json.dumps(merged))
        return root

    write_json()
    return root, write_json
