"""Three steps that overlap: order, distance, errors."""

from __future__ import annotations

import threading

import pytest

from sparseg.predict.pipeline import run_steps


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_item_passes_every_step_in_order(overlap, count):
    seen = {"load": [], "work": [], "finish": []}

    def step(name):
        def take(value):
            seen[name].append(value % 100)
            return value + 100

        return take

    run_steps(range(count), step("load"), step("work"), step("finish"), overlap=overlap)
    assert seen == {name: list(range(count)) for name in seen}


def test_while_one_is_worked_on_the_next_is_read_and_the_last_written():
    """Work on item 1 ends only once 2 is loaded and 0 is written: one after another it would never."""
    loaded, finished = threading.Event(), threading.Event()

    def load(item):
        if item == 2:
            loaded.set()
        return item

    def work(item):
        if item == 1:
            assert loaded.wait(10)
            assert finished.wait(10)
        return item

    def finish(item):
        if item == 0:
            finished.set()

    run_steps(range(3), load, work, finish)


def test_at_most_one_ahead_and_one_behind():
    events, lock = [], threading.Lock()

    def note(name):
        def take(item):
            with lock:
                events.append((name, item))
            return item

        return take

    run_steps(range(30), note("load"), note("work"), note("finish"))
    position = {event: number for number, event in enumerate(events)}
    for item in range(28):
        assert position["work", item] < position["load", item + 2]
        assert position["finish", item] < position["work", item + 2]


def test_without_overlap_everything_is_in_the_calling_thread():
    threads = set()

    def step(item):
        threads.add(threading.current_thread())
        return item

    run_steps(range(3), step, step, step, overlap=False)
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("step", ["load", "work", "finish"])
@pytest.mark.parametrize("overlap", [True, False])
def test_an_error_of_any_step_comes_out_and_no_thread_stays(step, overlap):
    def make(name):
        def take(item):
            if name == step and item == 2:
                raise ZeroDivisionError(name)
            return item

        return take

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match=step):
        run_steps(range(5), make("load"), make("work"), make("finish"), overlap=overlap)
    assert threading.active_count() == before


def test_an_interruption_lets_what_has_begun_end():
    written = []

    def work(item):
        if item == 1:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        run_steps(range(5), lambda item: item, work, written.append)
    assert written == [0]
