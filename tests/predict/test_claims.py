"""Claims: one living process per case, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import psutil
import pytest

from sparseg.errors import InputError
from sparseg.predict import claims
from sparseg.predict.claims import Claims, is_stale, locked, read_claim, this_process


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def plant(folder, name, owner, *, age=0.0):
    path = folder / f"{name}.claim"
    path.write_text(json.dumps(asdict(owner)))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_a_case_is_taken_once_and_given_back(tmp_path):
    with Claims(tmp_path, this_process()) as one, Claims(tmp_path, this_process()) as other:
        assert one.take("a")
        assert not other.take("a")
        assert other.take("b")
        one.drop("a")
        assert other.take("a")
        assert read_claim(tmp_path / "a.claim") == other.owner
        one.drop("a")  # no longer its own
        assert read_claim(tmp_path / "a.claim") == other.owner
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path, dead_pid):
    plant(tmp_path, "a", replace(this_process(), pid=dead_pid))
    with Claims(tmp_path, this_process()) as mine:
        assert mine.take("a")
        assert read_claim(tmp_path / "a.claim") == mine.owner


def test_a_number_that_a_younger_process_has_now(tmp_path):
    parent = psutil.Process(os.getppid())
    living = replace(this_process(), pid=parent.pid, started=parent.create_time())
    with Claims(tmp_path, this_process()) as mine:
        plant(tmp_path, "a", living)
        assert not mine.take("a")
        plant(tmp_path, "a", replace(living, started=living.started - 60))
        assert mine.take("a")


def test_a_process_that_ended_and_that_nobody_has_waited_for(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)
    plant(tmp_path, "a", replace(this_process(), pid=process.pid, started=time.time()))
    with Claims(tmp_path, this_process()) as mine:
        assert mine.take("a")
    process.wait()


def test_another_machine_is_believed_until_it_is_silent(tmp_path, dead_pid):
    elsewhere = replace(this_process(), host="other", pid=dead_pid)
    with Claims(tmp_path, this_process()) as mine:
        plant(tmp_path, "a", elsewhere, age=claims.SILENT_S - 30)
        assert not mine.take("a")
        plant(tmp_path, "a", elsewhere, age=claims.SILENT_S + 30)
        assert mine.take("a")


def test_a_heartbeat_makes_a_claim_young_again(tmp_path):
    with Claims(tmp_path, this_process()) as mine:
        assert mine.take("a")
        path = tmp_path / "a.claim"
        os.utime(path, (0, 0))
        assert is_stale(path, replace(mine.owner, host="other"), time.time())
        mine.beat()
        assert not is_stale(path, replace(mine.owner, host="other"), time.time())


def test_the_heart_beats_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.01)
    with Claims(tmp_path, this_process()) as mine:
        mine.take("a")
        os.utime(tmp_path / "a.claim", (0, 0))
        end = time.monotonic() + 5
        while (tmp_path / "a.claim").stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"[]", b'{"pid": 1}'])
def test_a_claim_that_was_never_finished_is_nobodys(tmp_path, content):
    (tmp_path / "a.claim").write_bytes(content)
    with Claims(tmp_path, this_process()) as mine:
        assert mine.take("a")


def test_a_claim_never_goes_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("keep")
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.claim").symlink_to(outside)
    with Claims(folder, this_process()) as mine:
        assert mine.take("a")
        assert not (folder / "a.claim").is_symlink()
    assert outside.read_text() == "keep"


def test_of_many_takers_of_a_stale_claim_one_wins(tmp_path, dead_pid):
    for number in range(20):
        plant(tmp_path, f"c{number}", replace(this_process(), pid=dead_pid))
    takers = [Claims(tmp_path, this_process()) for _ in range(4)]
    start, won = threading.Barrier(4), []

    def race(taker):
        start.wait()
        won.extend(number for number in range(20) if taker.take(f"c{number}"))

    threads = [threading.Thread(target=race, args=(taker,)) for taker in takers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))


def run_claim(folder, mode, key="k"):
    return Claims(folder, this_process(mode, key))


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("alone", "alone", "folder-claimed"),
        ("alone", "resume", "folder-claimed"),
        ("resume", "alone", "folder-claimed"),
        ("alone", "shard 1/2", "folder-claimed"),
        ("shard 1/2", "shard 1/2", "folder-claimed"),
        ("shard 1/2", "shard 2/3", "folder-claimed"),
        ("shard 1/2", "resume", "folder-claimed"),
        ("resume", "resume other", "folder-claimed-differently"),
        ("shard 1/2", "shard 2/2 other", "folder-claimed-differently"),
        ("resume", "resume", None),
        ("shard 1/2", "shard 2/2", None),
    ],
)
def test_which_runs_may_share_a_folder(tmp_path, first, second, code):
    second, _, key = second.partition(" other") if "other" in second else (second, "", "k")
    with run_claim(tmp_path, first) as one, run_claim(tmp_path, second, key) as two:
        one.enter_run()
        if code is None:
            two.enter_run()
            return
        with pytest.raises(InputError, match="--out") as caught:
            two.enter_run()
        assert caught.value.code == code
        assert ("--resume" in str(caught.value)) == (code == "folder-claimed")


def test_what_is_swept_only_when_nobody_else_is_there(tmp_path, dead_pid):
    plant(tmp_path, ".run-gone", replace(this_process("alone"), pid=dead_pid))
    swept = []
    with run_claim(tmp_path, "resume") as one, run_claim(tmp_path, "resume") as two:
        one.enter_run(lambda: swept.append("one"))
        two.enter_run(lambda: swept.append("two"))
    assert swept == ["one"]
    assert list(tmp_path.iterdir()) == []


def test_the_lock_admits_one(tmp_path):
    inside, seen = [0], []

    def enter():
        for _ in range(20):
            with locked(tmp_path):
                inside[0] += 1
                seen.append(inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 80
