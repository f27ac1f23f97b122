"""Row T6 and its kin: a cache that was damaged, interrupted or shared is found out before step 1."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sparseg.datasets import cache_store
from sparseg.datasets.cache import build_cache, cache_size, clear_cache
from sparseg.datasets.cache_store import Lock, discard, locked, new_part, publish, sweep
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts, measure
from sparseg.datasets.load import load_case
from sparseg.preprocessing.config import MRIntensity, PreprocessConfig
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

from .figures import Figure, rounds

PREPROCESS = PreprocessConfig(spacing=(1.0, 1.0, 1.0), intensity=MRIntensity())
KEY = "ab" + "0" * 62
posix = pytest.mark.skipif(os.name != "posix", reason="signals and locks as on POSIX")

# Says "ready" once everything is imported, waits for a line, builds, reports what it built.
BUILDER = """
import json, sys
from pathlib import Path
from sparseg.datasets.cache import build_cache
from sparseg.datasets.cache_store import Lock
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.preprocessing.config import MRIntensity, PreprocessConfig
import blosc2, scipy.sparse

root, cache, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
facts = [CaseFacts.from_json(values) for values in json.loads((root / "facts.json").read_text())]
names = [f"c{i}" for i in range(len(facts))]
cases = tuple(Case(n, (root / f"{n}.nii.gz",), root / f"{n}_seg.nii.gz") for n in names)
dataset = Dataset("toy", ("MR",), {0: "background", 1: "a", 2: "b"}, cases, (), root)
if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    build_cache(
        dataset, facts, PreprocessConfig(spacing=(1.0, 1.0, 1.0), intensity=MRIntensity()),
        cases=cases, folder=cache, chunk=(16, 16, 16), workers=workers,
        on_size=lambda size, number, folder: print(number, flush=True),
    )
    print("done", flush=True)
"""


def write_cases(root: Path, number: int) -> tuple[Dataset, list[CaseFacts]]:
    cases = []
    for seed in range(number):
        image, labels = make_phantom((20, 22, 18), spacing=(1.0, 1.2, 1.0), num_classes=3, seed=seed)
        write_image(root / f"c{seed}.nii.gz", image)
        write_label_map(root / f"c{seed}_seg.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
        cases.append(Case(f"c{seed}", (root / f"c{seed}.nii.gz",), root / f"c{seed}_seg.nii.gz"))
    dataset = Dataset("toy", ("MR",), {0: "background", 1: "a", 2: "b"}, tuple(cases), (), root)
    facts = [measure(*load_case(case, dataset)) for case in cases]
    (root / "facts.json").write_text(json.dumps([fact.to_json() for fact in facts]))
    (root / "builder.py").write_text(BUILDER)
    return dataset, facts


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, list[CaseFacts]]:
    return write_cases(tmp_path_factory.mktemp("data"), 8)


@pytest.fixture(scope="module")
def expected(
    toy: tuple[Dataset, list[CaseFacts]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """All files of a build that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    build(toy, folder)
    return content(folder)


def build(toy: tuple[Dataset, list[CaseFacts]], folder: Path) -> list[int]:
    """Returns how many cases had to be built."""
    built: list[int] = []
    dataset, facts = toy
    build_cache(
        dataset,
        facts,
        PREPROCESS,
        cases=dataset.training,
        folder=folder,
        chunk=(16, 16, 16),
        workers=1,
        on_size=lambda _, number, __: built.append(number),
    )
    return built


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def start(root: Path, cache: Path, workers: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", str(root / "builder.py"), str(root), str(cache), str(workers)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@posix
@pytest.mark.slow
def test_t6_killed_at_any_time_and_resumed_gives_the_same_bytes(
    toy, expected, tmp_path: Path, figure: Figure
) -> None:
    """SIGKILL at seeded times."""
    root, times = toy[0].root, random.Random(0)
    began = time.monotonic()
    build(toy, tmp_path / "timing")
    whole = time.monotonic() - began
    partly = incomplete = 0
    kills = rounds(8)
    for number in range(kills):
        cache = tmp_path / str(number)
        process = start(root, cache)
        go(process)
        time.sleep(times.uniform(0.05, 1.3) * whole)
        process.kill()
        process.communicate()
        # Whatever has its final name is complete.
        finished = {name: data for name, data in content(cache).items() if "/." not in name}
        incomplete += not finished.items() <= expected.items()
        partly += 0 < len(finished) < len(expected)
        build(toy, cache)
        assert content(cache) == expected, number
        assert leftovers(cache) == []
    figure("T6", "entries at a final name that are not whole after a kill", incomplete, of=kills)
    assert incomplete == 0
    assert partly > 0


@posix
@pytest.mark.slow
def test_t6_two_processes_at_once_build_each_case_once(toy, expected, tmp_path: Path) -> None:
    processes = [start(toy[0].root, tmp_path) for _ in range(2)]
    for process in processes:
        go(process)
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert (process.returncode, out.split()[-1]) == (0, "done")
    assert content(tmp_path) == expected
    assert leftovers(tmp_path) == []


@posix
@pytest.mark.slow
def test_t6_workers_end_with_a_killed_parent(toy, expected, tmp_path: Path) -> None:
    process = start(toy[0].root, tmp_path, workers=2)
    go(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "8\n"
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("case.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    children = [
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent_of(path) == process.pid
    ]
    assert children
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{pid}").exists() and running(pid) for pid in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    build(toy, tmp_path)
    assert content(tmp_path) == expected


def stat_fields(path: Path) -> list[str]:
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:  # gone in the meantime
        return ["X", "0"]


def parent_of(path: Path) -> int:
    return int(stat_fields(path)[1])


def running(pid: int) -> bool:
    return stat_fields(Path(f"/proc/{pid}/stat"))[0] not in "ZX"


@pytest.mark.hazard("T6", "damaged entries not found before step 1")
def test_t6_one_corrupt_case_among_eight_is_rebuilt_before_step_1(toy, expected, tmp_path: Path) -> None:
    build(toy, tmp_path)
    image = sorted(tmp_path.rglob("image.b2nd"))[3]
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    assert build(toy, tmp_path) == [1]
    assert content(tmp_path) == expected


@posix
def test_a_part_is_swept_once_nobody_holds_its_lock(tmp_path: Path) -> None:
    part = new_part(tmp_path, KEY)
    (part / "image.b2nd").write_bytes(b"half")
    with locked(tmp_path, KEY) as lock:
        assert lock is Lock.HELD
        with locked(tmp_path, KEY, wait=False) as second:
            assert second is Lock.BUSY
        sweep(tmp_path)
        assert part.exists()
    sweep(tmp_path)
    assert list((tmp_path / "ab").iterdir()) == []


@posix
def test_a_lock_left_by_a_killed_process_is_swept(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / f".{KEY}.lock").touch()
    sweep(tmp_path)
    assert list((tmp_path / "ab").iterdir()) == []


@posix
def test_an_entry_being_built_is_not_cleared(tmp_path: Path) -> None:
    publish(new_part(tmp_path, KEY), tmp_path / "ab" / KEY)
    with locked(tmp_path, KEY):
        assert clear_cache(tmp_path).num_cases == 0
        assert cache_size(tmp_path).num_cases == 1
    assert clear_cache(tmp_path).num_cases == 1


def test_without_locks_age_and_process_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store, "fcntl", None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own, old = new_part(tmp_path, KEY), new_part(tmp_path, KEY)
    os.utime(old, (0, 0))
    foreign = own.with_name(f".{KEY}.00000000-{ended.pid}-01234567.part")
    dead = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    for part in (foreign, dead):
        part.mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in own.parent.iterdir()) == sorted([own.name, foreign.name])


def test_without_locks_the_first_entry_stays(
    toy: tuple[Dataset, list[CaseFacts]], expected: dict[str, bytes], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(cache_store, "fcntl", None)
    build(toy, tmp_path)
    assert content(tmp_path) == expected
    entry = next(tmp_path.rglob("case.json")).parent
    part = new_part(tmp_path, entry.name)
    (part / "image.b2nd").write_bytes(b"late")
    assert not publish(part, entry)
    discard(part)
    assert content(tmp_path) == expected
    assert leftovers(tmp_path) == []
