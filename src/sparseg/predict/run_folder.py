"""The output folder of a run: its rows, which of them still hold, and the reports made from them.

The row of a case is written after its labels, whole and by renaming, so it vouches for them: a label file
without a row that fits it is not done, whatever it looks like.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from sparseg.errors import InputError
from sparseg.predict.claims import SUFFIX as CLAIM
from sparseg.predict.claims import locked
from sparseg.predict.fingerprints import RunKey, file_sha256, run_key
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.label_files import SUFFIX_OF
from sparseg.predict.maps import FOLDER as MAPS
from sparseg.predict.maps import map_paths
from sparseg.predict.predictor import Predictor
from sparseg.predict.rows import Row, read_row, row_bytes
from sparseg.predict.run_report import REPORT, STATISTICS, report_header, write_report
from sparseg.volumes.atomic import write_bytes_atomically

ROWS = "report"
# The page is made from the others by who wants one, with `report/<case>.js` beside it where it grows large.
REPORTS = (REPORT, STATISTICS, "report.html")
# Of a long list the report is not written anew after each case: at most this share of the time goes into it.
_REPORT_SHARE = 0.05
_PART = re.compile(r"\.[0-9a-f]{32}\.part")  # as `write_atomically` calls them


class RunFolder:
    """Where one run, of one process or many, puts everything.

    Args:
        out: The folder; `make` makes it.
        cases: All cases of the run, those of other processes too, in the order of the report.
        predictor: Says what the reports say about models and settings.
    """

    def __init__(self, out: Path, cases: Sequence[PredictionCase], predictor: Predictor) -> None:
        self.out = out
        self.rows = out / ROWS
        self.cases = tuple(cases)
        self.key: RunKey = run_key(predictor)
        self.wants_previews = predictor.settings.previews
        self._header = report_header(predictor)
        self._seen: dict[str, tuple[tuple[int, int], Row | None]] = {}
        self._made: list[Path] = []
        self._next_report = 0.0
        self._is_behind = False

    def make(self) -> None:
        """Make the folder, and the one of the rows in it.

        Raises:
            InputError: the folder of the rows leads elsewhere, or names of cases would meet there.
            OSError: it cannot be made.
        """
        _require_apart(self.cases, self.out)
        if self.rows.is_symlink():
            raise InputError(
                "nothing is written outside the output folder",
                received="a link in the place of the folder of the rows",
                remedy="remove it, or choose another --out",
                where=self.rows,
                code="output-escapes",
            )
        self._made = [path for path in (self.rows, *self.rows.parents) if not path.exists()]
        self.rows.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Remove the claims and unfinished files of killed processes; only while no other process is here."""
        for folder in (self.out, self.rows):
            for path in folder.iterdir():
                is_left = _PART.fullmatch(path.name) or (folder == self.rows and path.suffix == CLAIM)
                if is_left and not path.is_dir():
                    path.unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """Take back what `make` made and nobody put anything into."""
        with suppress(OSError):
            (self.out / MAPS).rmdir()
        with suppress(OSError):
            self.rows.rmdir()
            for path in self._made[1:]:
                path.rmdir()

    def row_path(self, case: str) -> Path:
        """File of a case's row."""
        return self.rows / f"{case}.json"

    def preview_folder(self, case: str) -> Path:
        """Folder of a case's previews."""
        return self.rows / case

    def row_of(self, case: PredictionCase) -> Row | None:
        """The complete row of a case, of whatever run; None where there is none."""
        return read_row(self.row_path(case.name), case.name)

    def write_row(self, row: Row) -> None:
        """Store a row in one step.

        Raises:
            VolumeError: the folder cannot be written to.
        """
        # Before it, so that a signal right after it finds the reports behind.
        self._is_behind = True
        write_bytes_atomically(self.row_path(row["case"]), row_bytes(row))

    def why_redo(self, case: PredictionCase, input_sha256: str) -> str | None:
        """Why what is there for a case does not do; None if it does, empty if nothing is there.

        Raises:
            OSError: the label file is there and cannot be read.
        """
        row = self.row_of(case)
        if row is None:
            return "no row vouches for its file" if case.output.is_file() else ""
        if row["status"] != "ok":
            return "it failed before"
        if row["settings_sha256"] != self.key.settings_sha256:
            is_model = row.get("weights_sha256") != list(self.key.weights_sha256)
            return "the weights changed" if is_model else "settings, model card or version changed"
        if row["input_sha256"] != input_sha256:
            return "the input changed"
        return self._why_rewrite(case, row)

    def discard(self, case: PredictionCase) -> None:
        """Remove all that an earlier run left for a case, its row first.

        Raises:
            OSError: something cannot be removed.
        """
        row = self.row_of(case)
        self.row_path(case.name).unlink(missing_ok=True)
        maps = map_paths(case.output).values()
        for path in {case.output, *self._own_output(case, row), *maps, self.rows / f"{case.name}.js"}:
            # A link in the place of the folder of the maps leads to files that are not ours.
            if not path.parent.is_symlink() or path.parent == self.out:
                path.unlink(missing_ok=True)
        folder = self.preview_folder(case.name)
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)

    def start_over(self, cases: Iterable[PredictionCase]) -> None:
        """Remove the reports, and of these cases the rows that look like this run's but are older.

        Raises:
            OSError: one cannot be removed.
        """
        with locked(self.rows):
            for name in REPORTS:
                (self.out / name).unlink(missing_ok=True)
            for case in cases:
                row = self.row_of(case)
                # Others are no part of this run's report; they go with their labels when their turn comes.
                if row is not None and row.get("settings_sha256") == self.key.settings_sha256:
                    self.row_path(case.name).unlink()

    def refresh(self, *, at_once: bool = False) -> None:
        """Put the reports together from the rows that are there now, unless they were a moment ago.

        Args:
            at_once: Do it whenever something is missing in them.

        Raises:
            VolumeError: the folder cannot be written to.
            OSError: it cannot be locked.
        """
        self._is_behind = self._is_behind or not at_once
        if not self._is_behind or (not at_once and time.monotonic() < self._next_report):
            return
        start = time.monotonic()
        # Rows are read under the lock: no report of another process is replaced by one that knows less.
        with locked(self.rows):
            write_report(self.out, self._header, self._rows_of_run())
        now = time.monotonic()
        self._next_report = now + (now - start) / _REPORT_SHARE
        self._is_behind = False

    def forget(self) -> None:
        """Remove rows and reports, for an image that was alone and failed."""
        reports = [self.out / name for name in REPORTS]
        for path in (*reports, *(self.row_path(case.name) for case in self.cases)):
            path.unlink(missing_ok=True)
        self._is_behind = False

    def _rows_of_run(self) -> list[Row]:
        rows = (self._row_cached(case) for case in self.cases)
        return [row for row in rows if row and row.get("settings_sha256") == self.key.settings_sha256]

    def _row_cached(self, case: PredictionCase) -> Row | None:
        path = self.row_path(case.name)
        try:
            # Rows come by renaming, so a new one is another file.
            stamp = (path.stat().st_ino, path.stat().st_mtime_ns)
        except OSError:
            return None
        if self._seen.get(case.name, (None, None))[0] != stamp:
            self._seen[case.name] = (stamp, read_row(path, case.name))
        return self._seen[case.name][1]

    def _why_rewrite(self, case: PredictionCase, row: Row) -> str | None:
        if not case.output.is_file():
            return "its file is gone"
        if row["output"] != case.output.name or file_sha256(case.output) != row["output_sha256"]:
            return "its file is not the one that was written"
        for kind, path in map_paths(case.output).items():
            wanted = row.get("maps_sha256", {}).get(kind)
            if wanted and not (path.is_file() and file_sha256(path) == wanted):
                return f"its {kind} map is not the one that was written"
        names = row["previews"].values()
        if self.wants_previews and not (names and all((self.out / name).is_file() for name in names)):
            return "its pictures are missing"
        return None

    def _own_output(self, case: PredictionCase, row: Row | None) -> list[Path]:
        """A label file of another format that the row says to be ours."""
        name = (row or {}).get("output")
        known = {f"{case.name}{suffix}" for suffix in SUFFIX_OF.values()} - {case.output.name}
        path = self.out / str(name)
        return [path] if name in known and path.resolve() != case.image.resolve() else []


def _require_apart(cases: Sequence[PredictionCase], out: Path) -> None:
    """Refuse names that would meet among the rows: `a.json` has its previews where `a` has its row."""
    names = {case.name.casefold() for case in cases}
    for case in cases:
        stem, dot, suffix = case.name.casefold().rpartition(".")
        if dot and suffix in ("json", "js", "claim") and stem in names:
            raise InputError(
                "names of cases must not differ only by an ending that rows and claims have",
                received=f"{stem} and {case.name}",
                remedy="rename one, or predict them into different folders",
                where=out,
                code="names-meet",
            )
