"""Times random training crops from the cache and from other ways to store a prepared case.

    python scripts/bench_loader.py benchmarks/YYYY-MM-DD-loader.json [--ct FOLDER]

All ways take turns in one process, crop for crop at the same places, so that a busy moment meets them all.
The files are warm (in the page cache). One crop is image and label of 96³ voxels as numpy arrays.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from scipy.ndimage import zoom

from sparseg.benchmark.machine import commit, describe_machine
from sparseg.datasets.cache_arrays import CachedArray, block_edge, write_array
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.preprocessing.config import PAPER_ABDOMEN_CT
from sparseg.preprocessing.pipeline import prepare

CROP = 96
SHAPE = (300, 300, 200)
ROUNDS, CROPS = 7, 40
Arrays = tuple[np.ndarray, np.ndarray]


def synthetic_case() -> Arrays:
    """A noisy body with smooth organs in still noisier air, prepared as CT: float16 image, uint8 label."""
    rng = np.random.default_rng(0)
    smooth = zoom(rng.normal(size=(38, 38, 25)), 8, order=1)[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, edge) for edge in SHAPE], indexing="ij"))
    body = grid[0] ** 2 + grid[1] ** 2 < 0.8
    inside = 40 + 60 * smooth / smooth.std() + rng.normal(size=SHAPE) * 12
    image = np.where(body, inside, -1000 + rng.normal(size=SHAPE) * 30)
    label = np.zeros(SHAPE, np.uint8)
    for value in range(1, 14):
        centre, radius = rng.uniform(-0.6, 0.6, (3, 1, 1, 1)), rng.uniform(0.08, 0.3, (3, 1, 1, 1))
        label[(((grid - centre) / radius) ** 2).sum(axis=0) < 1] = value
    prepared = (np.clip(image, -958, 326) + 958) * (2 / 1284) - 1
    return prepared[None].astype(np.float16), label[None]


def sample_case(folder: Path) -> Arrays:
    """The CT sample (`sparseg sample fetch ct`), prepared as the paper does."""
    dataset = read_dataset(folder)
    image, labels = load_case(dataset.training[0], dataset)
    prepared = prepare(image, PAPER_ABDOMEN_CT, labels=labels)
    assert prepared.labels is not None
    return prepared.image.array.astype(np.float16), prepared.labels.array.astype(np.uint8)


def blosc(codec: str, level: int, shuffle: str, block: int, chunk: int = CROP, *, mapped: bool = True) -> Any:
    """A way to store: returns a function (path, array) -> opened array."""

    def store(path: Path, array: np.ndarray) -> Any:
        edges = [min(chunk, edge) for edge in array.shape[1:]]
        parameters = blosc2.CParams(
            codec=blosc2.Codec[codec],
            clevel=level,
            filters=[blosc2.Filter[shuffle]],
            typesize=array.dtype.itemsize,
            nthreads=1,
        )
        blosc2.asarray(
            array,
            chunks=(1, *edges),
            blocks=(1, *(min(block, edge) for edge in edges)),
            urlpath=str(path),
            mode="w",
            cparams=parameters,
            dparams=blosc2.DParams(nthreads=1),
        )
        options = {"mmap_mode": "r"} if mapped else {"mode": "r"}
        return blosc2.open(str(path), dparams=blosc2.DParams(nthreads=1), **options)

    return store


def as_in_the_cache(path: Path, array: np.ndarray) -> Any:
    write_array(path, array, (CROP,) * 3)
    return CachedArray(path, array.shape, array.dtype)  # type: ignore[arg-type]


def as_numpy_file(path: Path, array: np.ndarray) -> Any:
    with path.open("wb") as file:
        np.save(file, array)
    return np.load(path, mmap_mode="r")


WAYS: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "sparseg cache": as_in_the_cache,
    "npy, mapped": as_numpy_file,
    "LZ4HC 5 shuffle, block 32, not mapped": blosc("LZ4HC", 5, "SHUFFLE", 32, mapped=False),
    "LZ4HC 9 shuffle, block 32": blosc("LZ4HC", 9, "SHUFFLE", 32),
    "LZ4HC 5 bitshuffle, block 32": blosc("LZ4HC", 5, "BITSHUFFLE", 32),
    "LZ4 5 shuffle, block 32": blosc("LZ4", 5, "SHUFFLE", 32),
    "ZSTD 1 shuffle, block 32": blosc("ZSTD", 1, "SHUFFLE", 32),
    "ZSTD 5 shuffle, block 32": blosc("ZSTD", 5, "SHUFFLE", 32),
    "LZ4HC 5 shuffle, block 16": blosc("LZ4HC", 5, "SHUFFLE", 16),
    "LZ4HC 5 shuffle, block 24": blosc("LZ4HC", 5, "SHUFFLE", 24),
    "LZ4HC 5 shuffle, block 48": blosc("LZ4HC", 5, "SHUFFLE", 48),
    "LZ4HC 5 shuffle, block 96": blosc("LZ4HC", 5, "SHUFFLE", 96),
    "LZ4HC 5 shuffle, block 32, chunk 64": blosc("LZ4HC", 5, "SHUFFLE", 32, 64),
    "LZ4HC 5 shuffle, block 32, chunk 160": blosc("LZ4HC", 5, "SHUFFLE", 32, 160),
}


def measure(name: str, arrays: Arrays, folder: Path) -> list[dict[str, Any]]:
    """One row per way of storing."""
    opened, rows = {}, {}
    for number, (way, store) in enumerate(WAYS.items()):
        paths = [folder / f"{number}{part}" for part in ("image", "label")]
        begun = time.perf_counter()
        opened[way] = [store(path, array) for path, array in zip(paths, arrays, strict=True)]
        rows[way] = {
            "volume": name,
            "shape": list(arrays[0].shape),
            "storage": way,
            "crop": [CROP] * 3,
            "write_seconds": round(time.perf_counter() - begun, 3),
            "bytes": sum(path.stat().st_size for path in paths),
            "share_of_raw": round(
                sum(path.stat().st_size for path in paths) / sum(a.nbytes for a in arrays), 4
            ),
        }
    rng = np.random.default_rng(1)
    times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        starts = [[int(rng.integers(edge - CROP + 1)) for edge in arrays[0].shape[1:]] for _ in range(CROPS)]
        for way in times:
            times[way].append([])
        for start in starts:
            box = (slice(None), *(slice(a, a + CROP) for a in start))
            for way, (image, label) in opened.items():
                begun = time.perf_counter()
                crop = np.array(image[box]), np.array(label[box])
                times[way][-1].append(time.perf_counter() - begun)
                if way == "sparseg cache":
                    np.testing.assert_array_equal(crop[0], arrays[0][box])
    for way, rounds in times.items():
        medians, pooled = [float(np.median(one)) for one in rounds], np.concatenate(rounds)
        rows[way] |= {
            "rounds": ROUNDS,
            "crops_per_round": CROPS,
            "median_ms": _ms(np.median(pooled)),
            "best_round_median_ms": _ms(min(medians)),
            "p10_ms": _ms(np.percentile(pooled, 10)),
            "p90_ms": _ms(np.percentile(pooled, 90)),
        }
    return list(rows.values())


def _ms(seconds: Any) -> float:
    return round(float(seconds) * 1e3, 3)


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ct", type=Path, help="folder of `sparseg sample fetch ct`")
    options = parser.parse_args()
    cases = {"synthetic CT": synthetic_case()}
    if options.ct is not None:
        cases["CT sample"] = sample_case(options.ct)
    rows = []
    for name, arrays in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, arrays, Path(folder))
    result = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": describe_machine(torch.device("cpu")) | {"blosc2": blosc2.__version__},
        "note": f"one thread, warm page cache, load at the end {os.getloadavg()[0]:.2f}; block edge "
        f"of the cache {block_edge(CROP)}",
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        sys.stdout.write(
            f"{row['volume']:13} {row['storage']:38} {row['median_ms']:6.2f} ms "
            f"(best {row['best_round_median_ms']:.2f}, {row['p10_ms']:.2f}-{row['p90_ms']:.2f}), "
            f"{100 * row['share_of_raw']:5.1f} %, {row['write_seconds']} s\n"
        )


if __name__ == "__main__":
    main()
