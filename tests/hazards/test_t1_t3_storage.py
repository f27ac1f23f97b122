"""Rows T1 and T3: whatever stops a save, the newest valid model and state can be loaded."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
import warnings
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
from sparseg.training.state import FOLDER, Progress, State, load_state, save_state

from .figures import Figure, rounds


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
    save_state(folder, State(Progress(step=step), net.state_dict(), {}))


def stored_steps(folder: Path) -> tuple[int, int]:
    """Steps of the model and of the state, each complete and all of one step."""
    net, step = load_model(folder / "last"), read_card(folder / "last").provenance.steps
    state = load_state(folder)
    for tensors, expected in ((net.state_dict(), step), (state.model, state.progress.step)):
        assert all(bool((value == expected).all()) for value in tensors.values())
    return step, state.progress.step


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
def test_t3_a_write_that_fails_anywhere_loses_nothing(tmp_path: Path, figure: Figure, stays: bool) -> None:
    store(tmp_path, 1)
    calls = count_calls(tmp_path)
    assert calls >= 9
    lost = []
    for at in range(1, calls + 1):
        folder = tmp_path / str(at)
        store(folder, 1)
        refused = False
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, at, stays=stays)
            for step in (2, 3) if stays else (2,):  # the second failure must not take what the first one left
                try:
                    store(folder, step)
                except (OSError, CheckpointError) as error:
                    refused = "No space left" in str(error)
        model, state = stored_steps(folder)
        # A folder that cannot be synced, behind the last rename, is no failure: all is there.
        complete = not refused and (model, state) == (2, 2)
        if not complete and not (refused and model in (1, 2) and state in (1, 2)):
            lost.append((at, model, state))
        store(folder, 4)
        assert stored_steps(folder) == (4, 4)
        assert sorted(path.name for path in folder.iterdir()) == ["last", FOLDER]
        assert len(list((folder / FOLDER).iterdir())) == 4  # two states of two files
    figure("T3", "failing calls that lost a checkpoint", len(lost), of=calls)
    assert lost == []


@pytest.mark.hazard("T3", "limits on file size that lost a checkpoint")
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
            lambda: save_state(tmp_path, State(Progress(step=2), net.state_dict(), {})),
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


def killed_while_saving(folder: Path, step: int, seconds: float) -> None:
    """Fork a process that saves step after step, and kill it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads; the child only saves
        child = os.fork()
    if child == 0:
        try:
            for later in range(step + 1, step + 10_000):
                store(folder, later)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_t1_killed_at_any_time_leaves_a_loadable_model_and_state(tmp_path: Path, figure: Figure) -> None:
    """SIGKILL at seeded times."""
    store(tmp_path, 0)
    times, step, within_a_save = random.Random(0), 0, 0
    number_of_kills, unreadable = max(rounds(12), 12), 0
    for number in range(number_of_kills):
        killed_while_saving(tmp_path, step, times.uniform(0.02, 0.12))
        within_a_save += any(path.name.startswith(".") for path in tmp_path.glob("**/.*"))
        try:
            model, state = stored_steps(tmp_path)
        except CheckpointError:
            unreadable += 1
            continue
        assert step <= state <= model <= state + 1, number
        step = state  # a resumed run goes on from the state
    figure("T1", "unreadable checkpoints", unreadable, of=number_of_kills)
    assert unreadable == 0
    assert step > 0
    assert within_a_save > 0
