"""A folder of cases: what is kept, what is redone, what the reports say, who gets which case."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from dataclasses import asdict, replace

import pytest

from predict.batch_tools import SHAPE, Notes, go, names, report, write_cases
from predict.threshold_model import threshold_predictor, tiny_card, tiny_net
from sparseg.errors import InputError, VolumeError
from sparseg.predict import batch as batch_module
from sparseg.predict import run_folder
from sparseg.predict.batch import predict_cases
from sparseg.predict.claims import this_process
from sparseg.predict.cleanup import Cleanup
from sparseg.predict.fingerprints import WITHOUT_INFLUENCE, input_sha256, run_key
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.job import predict_claimed
from sparseg.predict.label_files import LabelFiles
from sparseg.predict.predictor import Predictor
from sparseg.predict.run_folder import RunFolder
from sparseg.predict.settings import PredictSettings
from sparseg.predict.shards import Shard
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom


@pytest.fixture
def predictor(monkeypatch):
    return threshold_predictor(monkeypatch)


@pytest.fixture
def cases(tmp_path):
    return write_cases(tmp_path / "in", 4)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


class TestRows:
    def test_a_row_vouches_for_its_files(self, predictor, cases, out):
        go(predictor, cases, out)
        for case in cases:
            row = json.loads((out / "report" / f"{case.name}.json").read_text())
            assert row["output_sha256"] == hashlib.sha256(case.output.read_bytes()).hexdigest()
            assert row["input_sha256"] == hashlib.sha256(case.image.read_bytes()).hexdigest()
            shown = {name: row[name] for name in row if name not in ("statistics", "weights_sha256")}
            assert shown in report(out)["cases"]
            assert json.loads((out / "statistics.json").read_text())["cases"][case.name] == row["statistics"]

    def test_previews_are_written_and_named(self, monkeypatch, cases, out):
        predictor = threshold_predictor(monkeypatch, PredictSettings(previews=True))
        go(predictor, cases[:1], out)
        (row,) = report(out)["cases"]
        assert row["previews"]["labels"] == "report/case_000/labels.nii.gz"
        assert sorted(row["previews"]) == ["confidence", "image", "labels", "tokens"]
        assert all((out / name).is_file() for name in row["previews"].values())
        # Without them the next run leaves none of the old ones behind.
        go(threshold_predictor(monkeypatch), cases[:1], out)
        assert not (out / "report" / "case_000").exists()

    def test_reports_tell_of_this_runs_cases_only(self, predictor, cases, out, monkeypatch):
        go(predictor, cases, out)
        go(predictor, cases[:2], out)
        assert [row["case"] for row in report(out)["cases"]] == names(cases[:2])
        other = threshold_predictor(monkeypatch, PredictSettings(cleanup=Cleanup(min_ml=0.001)))
        go(other, cases, out, shard=Shard(2, 2))
        assert [row["case"] for row in report(out)["cases"]] == ["case_001", "case_003"]

    def test_the_same_reports_with_and_without_overlap(self, cases, out, monkeypatch):
        results = []
        for overlap in (True, False):
            predictor = threshold_predictor(monkeypatch, PredictSettings(overlap_cases=overlap))
            notes, _ = go(predictor, cases, out)
            files = {case.name: case.output.read_bytes() for case in cases}
            results.append((files, json.loads((out / "statistics.json").read_text())))
            assert notes.of("done") == names(cases)
            shutil.rmtree(out)
        assert results[0] == results[1]

    def test_the_report_is_not_written_after_each_of_many_quick_cases(
        self, predictor, cases, out, monkeypatch
    ):
        written = []
        honest = run_folder.write_report

        def write(*arguments):
            written.append(len(arguments[2]))
            honest(*arguments)

        monkeypatch.setattr(run_folder, "write_report", write)
        monkeypatch.setattr(run_folder, "_REPORT_SHARE", 1e-9)
        go(predictor, cases, out)
        assert written == [1, 4]
        monkeypatch.setattr(run_folder, "_REPORT_SHARE", 1e9)
        written.clear()
        go(predictor, cases, out)
        assert written == [1, 2, 3, 4]


class TestResume:
    def test_what_is_done_is_left_alone(self, predictor, cases, out):
        go(predictor, cases, out)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
        rows = report(out)["cases"]
        (out / "report.json").unlink()
        notes, errors = go(predictor, cases, out, resume=True)
        assert (notes.of("reused"), notes.of("done"), errors) == (names(cases), [], [])
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == before
        assert report(out)["cases"] == rows

    def test_without_it_everything_is_redone(self, predictor, cases, out):
        go(predictor, cases, out)
        notes, _ = go(predictor, cases, out)
        assert notes.of("done") == names(cases)

    def test_new_cases_are_added(self, predictor, cases, out):
        go(predictor, cases[:2], out)
        notes, _ = go(predictor, cases, out, resume=True)
        assert (notes.of("reused"), notes.of("done")) == (names(cases[:2]), names(cases[2:]))
        assert notes.of("redo") == []
        assert [row["case"] for row in report(out)["cases"]] == names(cases)

    def redone(self, predictor, cases, out, why):
        """Expect case 1 to be redone for the reason, and nothing else."""
        notes, errors = go(predictor, cases, out, resume=True)
        assert errors == []
        assert [event for event in notes.events if event[0] == "redo"] == [("redo", "case_001", why)]
        assert notes.of("done") == ["case_001"]
        assert notes.of("reused") == ["case_000", "case_002", "case_003"]
        notes, _ = go(predictor, cases, out, resume=True)
        assert notes.of("reused") == names(cases)

    def test_a_stump(self, predictor, cases, out):
        go(predictor, cases, out)
        cases[1].output.write_bytes(cases[1].output.read_bytes()[:60])
        self.redone(predictor, cases, out, "its file is not the one that was written")

    def test_a_file_that_is_gone(self, predictor, cases, out):
        go(predictor, cases, out)
        cases[1].output.unlink()
        self.redone(predictor, cases, out, "its file is gone")

    @pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"case": "case_001", "status": "ok"}'])
    def test_no_complete_row(self, predictor, cases, out, content):
        go(predictor, cases, out)
        row = out / "report" / "case_001.json"
        row.unlink() if content is None else row.write_bytes(content)
        self.redone(predictor, cases, out, "no row vouches for its file")

    def test_a_row_of_another_case(self, predictor, cases, out):
        go(predictor, cases, out)
        shutil.copy(out / "report" / "case_000.json", out / "report" / "case_001.json")
        self.redone(predictor, cases, out, "no row vouches for its file")

    def test_another_image(self, predictor, cases, out):
        go(predictor, cases, out)
        write_image(cases[1].image, make_phantom(SHAPE, seed=99)[0])
        self.redone(predictor, cases, out, "the input changed")

    def test_a_case_that_failed(self, predictor, cases, out):
        good = cases[1].image.read_bytes()
        cases[1].image.write_bytes(good[:-40])
        _, errors = go(predictor, cases, out)
        assert [type(error) for error in errors] == [VolumeError]
        cases[1].image.write_bytes(good)
        self.redone(predictor, cases, out, "it failed before")

    def test_pictures_that_are_missing(self, monkeypatch, cases, out):
        predictor = threshold_predictor(monkeypatch, PredictSettings(previews=True))
        go(predictor, cases, out)
        (out / "report" / "case_001" / "image.nii.gz").unlink()
        self.redone(predictor, cases, out, "its pictures are missing")

    def test_a_map_that_was_changed(self, monkeypatch, cases, out):
        settings = PredictSettings(files=LabelFiles(maps=("uncertainty",)))
        predictor = threshold_predictor(monkeypatch, settings)
        go(predictor, cases, out)
        (out / "maps" / "case_001_uncertainty.nii.gz").write_bytes(b"")
        self.redone(predictor, cases, out, "its uncertainty map is not the one that was written")

    def test_other_weights(self, monkeypatch, cases, out):
        go(threshold_predictor(monkeypatch), cases[:1], out)
        net = tiny_net()
        other = Predictor(net, tiny_card(net).model_copy(update={"weights_sha256": "f" * 64}))
        notes, _ = go(other, cases[:1], out, resume=True)
        assert notes.events[0] == ("redo", "case_000", "the weights changed")
        assert notes.of("done") == ["case_000"]

    def test_other_settings(self, monkeypatch, cases, out):
        go(threshold_predictor(monkeypatch), cases[:1], out)
        other = threshold_predictor(monkeypatch, PredictSettings(cleanup=Cleanup(min_ml=0.001)))
        notes, _ = go(other, cases[:1], out, resume=True)
        assert notes.events[0] == ("redo", "case_000", "settings, model card or version changed")

    def test_an_input_that_broke_takes_its_old_labels_along(self, predictor, cases, out):
        go(predictor, cases, out)
        cases[1].image.unlink()
        notes, _ = go(predictor, cases, out, resume=True)
        assert notes.of("error") == ["case_001"]
        assert not cases[1].output.exists()
        assert report(out)["cases"][1]["status"] == "error"

    def test_another_format_replaces_the_file_that_the_row_names(self, monkeypatch, cases, out):
        go(threshold_predictor(monkeypatch), cases[:2], out)
        (out / "case_001.seg.nrrd").write_text("somebody else's")
        other = threshold_predictor(monkeypatch, PredictSettings(files=LabelFiles("seg.nrrd")))
        moved = [replace(case, output=out / f"{case.name}.seg.nrrd") for case in cases[:1]]
        go(other, moved, out)
        assert {path.name for path in out.glob("case*")} == {
            "case_000.seg.nrrd",
            "case_001.nii.gz",
            "case_001.seg.nrrd",
        }

    @pytest.mark.parametrize("name", ["../in/case_001.nii.gz", "case_001.nii.gz", "report.json"])
    def test_a_row_that_lies_removes_nothing_else(self, predictor, cases, out, name):
        go(predictor, cases, out)
        row_path = out / "report" / "case_000.json"
        row_path.write_text(json.dumps({**json.loads(row_path.read_text()), "output": name}))
        go(predictor, cases[:1], out, resume=True)
        assert cases[1].image.exists()
        assert cases[1].output.exists()
        assert (out / "report.json").exists()


class TestKeys:
    def test_every_setting_counts_unless_it_is_known_not_to(self, monkeypatch):
        own = run_key(threshold_predictor(monkeypatch)).settings_sha256
        harmless = {
            "batch_size": 2,
            "max_bytes": 10**6,
            "previews": True,
            "overlap_cases": False,
            "finish_slab": 3,
            "sums_device": "device",
        }
        for name, value in harmless.items():
            assert run_key(threshold_predictor(monkeypatch, PredictSettings(**{name: value}))) == run_key(
                threshold_predictor(monkeypatch)
            ), name
        changes = {
            "overlap": 0.25,
            "keep_empty": True,
            "cleanup": Cleanup(min_ml=1.0),
            "files": LabelFiles("seg.nrrd"),
            "keep_ratios": (0.5,),
        }
        keys = {
            run_key(threshold_predictor(monkeypatch, PredictSettings(**{name: value}))).settings_sha256
            for name, value in changes.items()
        }
        assert len(keys | {own}) == len(changes) + 1
        assert asdict(PredictSettings()).keys() >= WITHOUT_INFLUENCE

    def test_the_model_card_counts_and_its_history_does_not(self, monkeypatch):
        net, card = tiny_net(), tiny_card(tiny_net())
        note = card.provenance.model_copy(update={"note": "read me"})
        same = Predictor(net, card.model_copy(update={"provenance": note}))
        assert run_key(same) == run_key(Predictor(net, card))
        renamed = tiny_card(net, labels={0: "background", 1: "spleen", 2: "tumor"})
        assert run_key(Predictor(net, renamed)) != run_key(Predictor(net, card))
        key = run_key(same)
        monkeypatch.setattr("sparseg.predict.fingerprints.__version__", "0.0.0")
        assert run_key(same) != key

    def test_inputs_of_several_files(self, tmp_path):
        def case(**changes):
            values = {"name": "a", "image": tmp_path / "s", "output": tmp_path / "o", **changes}
            return PredictionCase(**values)

        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "1.dcm").write_bytes(b"one")
        (tmp_path / "s" / "2.dcm").write_bytes(b"two")
        (tmp_path / "b.nii").write_bytes(b"three")
        seen = [input_sha256(case()), input_sha256(case(series_uid="1.2"))]
        seen.append(input_sha256(case(channels=(tmp_path / "b.nii",))))
        seen.append(input_sha256(case(image=tmp_path / "b.nii")))
        assert seen[-1] == hashlib.sha256(b"three").hexdigest()
        (tmp_path / "s" / "2.dcm").write_bytes(b"TWO")
        seen.append(input_sha256(case()))
        (tmp_path / "s" / "2.dcm").rename(tmp_path / "s" / "3.dcm")
        seen.append(input_sha256(case()))
        assert len(set(seen)) == len(seen)


class TestSharing:
    def test_shards_one_after_another_make_one_report(self, predictor, cases, out):
        for index in (1, 2, 3):
            notes, _ = go(predictor, cases, out, shard=Shard(index, 3))
            assert notes.of("done") == names(cases)[index - 1 :: 3]
        assert [row["case"] for row in report(out)["cases"]] == names(cases)
        assert list(json.loads((out / "statistics.json").read_text())["cases"]) == names(cases)
        assert [path for path in (out / "report").iterdir() if path.suffix != ".json"] == []

    def test_a_shard_without_cases(self, predictor, cases, out):
        notes, errors = go(predictor, cases[:1], out, shard=Shard(2, 2))
        assert (notes.events, errors, out.exists()) == ([], [], False)

    def test_a_living_run_keeps_others_out(self, predictor, cases, out):
        rows = out / "report"
        rows.mkdir(parents=True)
        claim = rows / ".run-x.claim"
        claim.write_text(json.dumps(asdict(this_process("alone", run_key(predictor).settings_sha256))))
        for resume in (False, True):
            with pytest.raises(InputError, match="--resume") as caught:
                go(predictor, cases, out, resume=resume)
            assert caught.value.code == "folder-claimed"
        assert sorted(path.name for path in rows.iterdir()) == [".lock", claim.name]

    def test_a_claimed_case_comes_last_and_is_not_done_twice(self, predictor, cases, out, monkeypatch):
        """Another process has case 0 and finishes it while this one does the others."""
        monkeypatch.setattr(batch_module, "_POLL_S", 0.01)
        folder = RunFolder(out, cases, predictor)
        folder.make()
        claim = folder.rows / "case_000.claim"
        waiting = threading.Event()

        class Other(Notes):
            def on_wait(self, num_cases):
                super().on_wait(num_cases)
                waiting.set()

        def finish_elsewhere():
            assert waiting.wait(30)
            predict_claimed(predictor, cases[0], folder)
            claim.unlink()

        other = threading.Thread(target=finish_elsewhere)
        other.start()
        notes = Other()
        owner = replace(this_process("resume", run_key(predictor).settings_sha256), token="other")
        honest = RunFolder.sweep

        def sweep(self):
            honest(self)
            claim.write_text(json.dumps(asdict(owner)))

        monkeypatch.setattr(RunFolder, "sweep", sweep)
        predict_cases(predictor, cases, out, notes, resume=True)
        other.join()
        assert notes.of("done") == names(cases[1:])
        assert notes.of("reused") == ["case_000"]
        assert notes.events[-2:] == [("wait", "", "1"), ("reused", "case_000", "")]
        assert [row["status"] for row in report(out)["cases"]] == ["ok"] * 4

    def test_one_claimed_case_by_itself(self, predictor, cases, out):
        folder = RunFolder(out, cases, predictor)
        folder.make()
        seen = []
        job = predict_claimed(predictor, cases[2], folder, lambda done, total: seen.append((done, total)))
        assert job.error is None
        assert json.loads(json.dumps(job.row)) == json.loads((out / "report/case_002.json").read_text())
        assert seen == [(1, 1)]
        assert (job.loaded, job.windows) == (None, None)
        cases[3].image.unlink()
        job = predict_claimed(predictor, cases[3], folder)
        assert json.loads((out / "report" / "case_003.json").read_text())["code"] == job.error.code
        folder.refresh()
        assert [row["case"] for row in report(out)["cases"]] == ["case_002", "case_003"]
