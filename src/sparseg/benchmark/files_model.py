"""A network for the synthetic CT: `python -m sparseg.benchmark.files_model FOLDER` trains one in minutes.

Equality and time can be measured with random weights; whether skipped windows cost Dice can not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparseg.benchmark.files_case import CT_SHAPE, CT_SPACING, LABELS, make_ct, model_spacing
from sparseg.checkpoints.card import ModelCard, Provenance
from sparseg.checkpoints.folder import save_model
from sparseg.models.build import build_segmenter
from sparseg.models.network import Network
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.preprocessing.pipeline import prepare
from sparseg.shapes import Triple

# 1.5 mm in plane, the slices as they are.
MODEL_SPACING = model_spacing(CT_SHAPE, CT_SPACING)
# Narrow, so that organs 15 HU apart can be told apart after a few minutes.
_CLIP = (-200.0, 400.0)
_SMALL_CROP = 48


def model_card(net: Network, *, overlap: float = 0.5, crop: bool = True, note: str = "") -> ModelCard:
    """Card of a network for the synthetic CT."""
    return ModelCard(
        model=net.config,
        channels=("CT",),
        labels=LABELS,
        preprocess=PreprocessConfig(
            spacing=MODEL_SPACING, intensity=CTIntensity(clip=_CLIP), foreground_crop=crop
        ),
        overlap=overlap,
        provenance=Provenance(dataset="synthetic CT", note=note),
    )


def random_model(preset: str, seed: int = 0) -> tuple[Network, ModelCard]:
    """A preset with seeded random weights, and its card."""
    torch.manual_seed(seed)
    net = build_segmenter(preset).eval()
    return net, model_card(net)


def train_model(preset: str, *, steps: int, last_steps: int, num_cases: int = 4, seed: int = 0) -> Network:
    """Train a preset on synthetic CTs.

    Most steps see crops of 48 voxels, which are eight times as fast; the last ones whole windows.

    Args:
        preset: Named model, with as many classes as there are labels.
        steps: Steps with small crops, two each.
        last_steps: Steps with crops of the model's window, one each.
        num_cases: CTs; their seeds begin at 100, so that the timed one, seed 0, is none of them.
        seed: Of weights and crops.
    """
    torch.manual_seed(seed)
    net = build_segmenter(preset, roi_size=(_SMALL_CROP,) * 3, drop_path=0.0)
    cases = [_prepared(net, 100 + number) for number in range(num_cases)]
    _fit(net, _crops(cases, (_SMALL_CROP,) * 3, batch=2, seed=seed), steps=steps, rate=1e-3)
    whole = build_segmenter(preset)
    # Only the positions of the tokens depend on the window; the large window has its own.
    learnt = {name: value for name, value in net.state_dict().items() if "pos_embed" not in name}
    whole.load_state_dict({**whole.state_dict(), **learnt})
    _fit(whole, _crops(cases, whole.config.roi_size, batch=1, seed=seed + 1), steps=last_steps, rate=4e-4)
    return whole.eval()


def _prepared(net: Network, seed: int) -> tuple[np.ndarray, np.ndarray]:
    image, labels = make_ct(seed=seed)
    done = prepare(image, model_card(net, crop=False).preprocess, labels=labels)
    assert done.labels is not None
    return done.image.array, done.labels.array


def _crops(
    cases: list[tuple[np.ndarray, np.ndarray]], size: Triple, *, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of image `[B, 1, *size]` and ids; two of three crops hold a label drawn evenly."""
    rng = np.random.default_rng(seed)
    while True:
        images, targets = [], []
        for _ in range(batch):
            image, labels = cases[rng.integers(len(cases))]
            centre = [rng.integers(n) for n in labels.shape[1:]]
            if rng.random() < 2 / 3:
                hits = np.flatnonzero(labels == rng.integers(1, len(LABELS)))
                if hits.size:
                    centre = list(np.unravel_index(rng.choice(hits), labels.shape)[1:])
            shift = [int(c - rng.integers(s // 4, 3 * s // 4)) for c, s in zip(centre, size, strict=True)]
            first = [int(np.clip(a, 0, n - s)) for a, n, s in zip(shift, labels.shape[1:], size, strict=True)]
            box = (slice(None), *(slice(a, a + s) for a, s in zip(first, size, strict=True)))
            images.append(torch.from_numpy(image[box].copy()))
            targets.append(torch.from_numpy(labels[box].astype(np.int64)))
        yield torch.stack(images), torch.stack(targets)


def _fit(net: Network, batches: Iterator[tuple[Tensor, Tensor]], *, steps: int, rate: float) -> None:
    # Without weights a network this young calls everything background and liver.
    weight = torch.tensor([0.1] + [1.0] * (len(LABELS) - 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2), pct_start=0.1)
    net.train()
    began = time.perf_counter()
    for step in range(1, steps + 1):
        image, target = next(batches)
        value = functional.cross_entropy(net(image), target[:, 0], weight=weight)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps:
            spent = time.perf_counter() - began
            sys.stderr.write(f"step {step} of {steps}: loss {float(value.detach()):.3f}, {spent:.0f} s\n")


def main() -> None:
    """Train and write a model folder."""
    parser = argparse.ArgumentParser(prog="sparseg.benchmark.files_model", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="vit_tiny_p8")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--last-steps", type=int, default=60)
    options = parser.parse_args()
    net = train_model(options.preset, steps=options.steps, last_steps=options.last_steps)
    note = f"{options.steps} and {options.last_steps} steps on synthetic CTs, for benchmarks only"
    save_model(options.folder, net, model_card(net, note=note))


if __name__ == "__main__":
    main()
