"""The same prediction as a pipeline of MONAI's transforms, the way its tutorials and bundles write it."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
)

from sparseg.models.network import Network
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.shapes import Triple

_IMAGE, _LABELS = "image", "prediction"


class MonaiPipeline:
    """LoadImage, EnsureChannelFirst, Orientation, Spacing, ScaleIntensityRange, sliding_window_inference,
    Invert, AsDiscrete, SaveImage.

    `Spacing` computes in float32: its default, float64, takes four times as long and more memory.

    Args:
        net: The network.
        config: The model's preprocessing, with a spacing; a foreground crop is left out.
        overlap: Share of the roi by which windows overlap; their importance is Gaussian.
    """

    def __init__(self, net: Network, config: PreprocessConfig, overlap: float) -> None:
        assert isinstance(config.intensity, CTIntensity)
        low, high = config.intensity.clip
        self.net, self.overlap = net, overlap
        with warnings.catch_warnings():
            # Whatever reader is asked for, all are made, and one misses a GPU decoder for DICOM.
            warnings.filterwarnings("ignore", message="NvImgCodec")
            self.read = Compose([LoadImaged(_IMAGE), EnsureChannelFirstd(_IMAGE)])
        self.prepare = Compose(
            [
                Orientationd(_IMAGE, axcodes="RAS", labels=None),
                Spacingd(_IMAGE, pixdim=config.spacing, mode="bilinear", dtype=torch.float32),
                ScaleIntensityRanged(_IMAGE, a_min=low, a_max=high, b_min=-1, b_max=1, clip=True),
            ]
        )
        self.invert = Invertd(
            _LABELS, transform=self.prepare, orig_keys=_IMAGE, nearest_interp=False, to_tensor=True
        )
        self.decide = AsDiscreted(_LABELS, argmax=True)

    def run(self, image: Path, folder: Path) -> dict[str, float]:
        """Predict one .nii.gz into a file of the same name in `folder`. Returns seconds by step."""
        roi: Triple = self.net.config.roi_size
        save = SaveImaged(
            _LABELS,
            output_dir=folder,
            output_postfix="",
            output_dtype=np.uint8,
            separate_folder=False,
            print_log=False,
        )
        seconds: dict[str, float] = {}
        began = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal began
            now = time.perf_counter()
            seconds[name], began = now - began, now

        with torch.inference_mode():
            data = self.read({_IMAGE: image})
            lap("read")
            data = self.prepare(data)
            lap("prepare")
            windows = data[_IMAGE][None]
            data[_LABELS] = sliding_window_inference(
                windows,
                roi,
                1,
                self.net,
                overlap=self.overlap,
                mode="gaussian",
                padding_mode="constant",
                cval=-1,
            )[0]
            lap("windows")
            data = self.decide(self.invert(data))
            lap("finish")
            save(data)
            lap("write")
        return seconds
