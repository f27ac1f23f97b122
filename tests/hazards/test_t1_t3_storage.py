"""Rows T1 and T3: whatever stops a save, the newest valid model and state can be loaded."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseg.checkpoints.card import ModelCard, Provenance
from sparseg.checkpoints.folder import load_model, read_card, save_model
from sparseg.errors import CheckpointError
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.preprocessing.config import PAPER_ABDOMEN_CT
from sparseg.training.state import Progress, load_state, save_state


def tiny(step: int) -> tuple[SparseUNETR, ModelCard]:
    """A model all of whose weights say which step it is of."""
    net = build_segmenter("test_tiny", feature_size=1, pruning_stages=())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(step)
    card = ModelCard(
        model=net.config,
        preprocess=PAPER_ABDOMEN_CT,
        channels=("CT",),
        labels={0: "background", 1: "a", 2: "b"},
        provenance=Provenance(steps=step),
    )
    return net, card


def store(folder: Path, step: int) -> None:
    net, card = tiny(step)
    save_model(folder / "last", net, card)
    save_state(folder, Progress(step=step), net.state_dict(), {}, None)


def stored_steps(folder: Path) -> tuple[int, int]:
    """Steps of the model and of the state, each complete and all of one step."""
    net, step = load_model(folder / "last"), read_card(folder / "last").provenance.steps
    progress, state = load_state(folder)
    for tensors, expected in ((net.state_dict(), step), (state["model"], progress.step)):
        assert all(bool((value == expected).all()) for value in tensors.values())
    return step, progress.step


class FailingDisk:
    """Lets the n-th call that touches the disk fail, and all later ones too where the disk stays full."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, stays: bool) -> None:
        self.calls, self.at, self.stays = 0, at, stays
        for owner, name in (
            (os, "fsync"),
            (Path, "replace"),
            (Path, "rename"),
            (Path, "mkdir"),
            (Path, "write_text"),
            (torch, "save"),
        ):
            patch.setattr(owner, name, self._wrap(getattr(owner, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.at or (self.stays and self.calls > self.at):
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call


def count_calls(folder: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch, 0, stays=False)
        store(folder, 1)
        return disk.calls


@pytest.mark.parametrize("stays", [False, True])
def test_t3_a_write_that_fails_anywhere_loses_nothing(tmp_path: Path, stays: bool) -> None:
    store(tmp_path, 1)
    calls = count_calls(tmp_path)
    assert calls >= 9
    lost = []
    for at in range(1, calls + 1):
        store(tmp_path, 1)
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, at, stays=stays)
            for step in (2, 3):  # the second failure must not take what the first one left
                with pytest.raises(OSError, match="No space left"):
                    store(tmp_path, step)
                if not stays:
                    break
        model, state = stored_steps(tmp_path)
        if not (model in (1, 2) and state == 1):
            lost.append((at, model, state))
    assert lost == []
    store(tmp_path, 4)
    assert stored_steps(tmp_path) == (4, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "state.pt"]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as on Linux")
@pytest.mark.parametrize("limit", [0, 4096, 20_000])
def test_t3_a_real_limit_on_file_size_loses_nothing(tmp_path: Path, limit: int) -> None:
    store(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        net, card = tiny(2)
        for save in (
            lambda: save_model(tmp_path / "last", net, card),
            lambda: save_state(tmp_path, Progress(step=2), net.state_dict(), {}, None),
        ):
            # OSError and our own errors are what the command line prints on one line.
            with pytest.raises((OSError, CheckpointError)) as caught:
                save()
            assert isinstance(caught.value, OSError) or "check that the disk has free space" in str(
                caught.value
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stored_steps(tmp_path) == (1, 1)


KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
from hazards.test_t1_t3_storage import store, stored_steps, tiny
folder, times = Path(sys.argv[2]), int(sys.argv[3])
store(folder, 0)
generator, step, bad, cut = random.Random(0), 0, [], 0
for number in range(times):
    child = os.fork()
    if child == 0:
        for later in range(step + 1, step + 10_000):
            store(folder, later)
    time.sleep(generator.uniform(0.02, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    cut += any(path.name.startswith(".") for path in folder.iterdir())
    try:
        model, state = stored_steps(folder)
        if not (step <= state <= model <= state + 1):
            bad.append((number, step, model, state))
        step = state  # a resumed run goes on from the state
    except BaseException as error:
        bad.append((number, repr(error)))
print(len(bad), cut, step, bad[:3])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_t1_killed_at_any_time_leaves_a_loadable_model_and_state(tmp_path: Path) -> None:
    """SIGKILL at seeded times; `SPARSEG_HAZARD_ROUNDS=200` gives the figure of the table."""
    times = int(os.environ.get("SPARSEG_HAZARD_ROUNDS", "15"))
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tests, str(tmp_path), str(times)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    bad, cut, step, _ = done.stdout.split(maxsplit=3)
    assert bad == "0", done.stdout
    assert int(cut) > 0, "no kill fell within a save; the test saw nothing"
    assert int(step) > 0
