"""`reconstruction.png`: what the encoder was shown and what the autoencoder made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseg.models.autoencoder import MaskedAutoencoder, patchify, unpatchify
from sparseg.shapes import token_grid

PICTURE = "reconstruction.png"
_PLANES = ("sagittal", "coronal", "axial")
_COLUMNS = ("input", "visible to the encoder", "reconstruction")
_SEED = 0


def reconstruct_masked(net: MaskedAutoencoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct one crop under a mask that is the same at every call.

    Args:
        net: Left in the mode it was in.
        image: `[C, H, W, D]` on the network's device.

    Returns:
        The crop with its hidden patches as predicted `[C, H, W, D]`, and `[H, W, D]` bool, True where hidden.
    """
    was_training = net.training
    net.eval()
    batch = image[None]
    with torch.inference_mode():
        output = net(batch, torch.Generator().manual_seed(_SEED))
        rebuilt = net.reconstruct(batch, output)
    net.train(was_training)
    patch = net.config.patch_size
    flat = output.mask.unsqueeze(2).expand(-1, -1, patchify(batch[:, :1], patch).shape[2])
    hidden = unpatchify(flat, token_grid(image.shape[1:], patch), patch)
    return rebuilt[0], hidden[0, 0]


def draw_reconstruction(
    folder: Path, image: np.ndarray, hidden: np.ndarray, rebuilt: np.ndarray, *, title: str
) -> None:
    """Write the three middle planes of a crop as input, as seen, and as reconstructed.

    Args:
        folder: Run folder.
        image: `[H, W, D]` on RAS axes.
        hidden: `[H, W, D]` bool.
        rebuilt: `[H, W, D]`.
        title: Above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    columns = (image, np.ma.masked_array(image, hidden), rebuilt)
    axes = figure.subplots(3, 3)
    for row, plane in enumerate(_PLANES):
        for column, volume in enumerate(columns):
            place = axes[row][column]
            place.set_facecolor("#c8d4e3")
            place.imshow(
                volume.take(image.shape[row] // 2, axis=row).T,
                cmap="gray",
                origin="lower",
                vmin=low,
                vmax=max(high, low + 1e-3),
                interpolation="nearest",
            )
            place.set(xticks=[], yticks=[])
        axes[row][0].set_ylabel(plane)
    for column, name in enumerate(_COLUMNS):
        axes[0][column].set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=11)
    temporary = folder / f".{PICTURE}"
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(folder / PICTURE)
