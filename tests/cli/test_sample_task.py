"""`sparseg sample task`: the wiring; the tasks themselves are tested with the datasets."""

from __future__ import annotations

from sparseg.datasets import sample_tasks
from sparseg.datasets.writers.write import write_dataset
from sparseg.datasets.writers.written import WrittenCase
from sparseg.volumes.phantoms import make_phantom


def test_a_task_is_written_where_it_is_told(sparseg, tmp_path, monkeypatch):
    asked = []

    def make(name, target, *, on_case):
        asked.append((name, target))
        on_case("a")
        names = {0: "background", 1: "liver", 2: "tumor"}
        cases = [WrittenCase(name, *make_phantom((8, 8, 8))) for name in "abcdefg"]
        write_dataset("decathlon", cases, target, name="toy", channels=("CT",), labels=names)
        (target / "README.txt").write_text("made of nothing\n")
        return target

    monkeypatch.setattr(sample_tasks, "make_task", make)
    outcome = sparseg("sample", "task", "small", "--to", tmp_path / "small")
    assert (outcome.code, outcome.err) == (0, "")
    assert asked == [("small", tmp_path / "small")]
    assert "a, b, c, d, e and 2 more" in outcome.out
    assert "made of nothing" in outcome.out
    assert "2 structures" in outcome.out


def test_an_unknown_task_names_the_known_ones(sparseg, tmp_path):
    sparseg("sample", "task", "liver", "--to", tmp_path / "x").refused("liver", "ct", "brain", "small")
    assert not (tmp_path / "x").exists()
