"""Start or resume a training run in a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from sparseg.config import load_yaml, parse_config, to_yaml
from sparseg.datasets.dataset import Dataset, some
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.splits import write_splits
from sparseg.errors import ConfigError
from sparseg.training.augment import margin_size
from sparseg.training.config import TrainConfig
from sparseg.training.data import load_training_data
from sparseg.training.loop import Run
from sparseg.training.losses import kind_of
from sparseg.training.manifest import FILE as MANIFEST
from sparseg.training.manifest import read_manifest, write_manifest
from sparseg.training.monitor import Monitor
from sparseg.training.network import make_network
from sparseg.training.ranks import in_turns, num_restarts, require_precision
from sparseg.training.resume import require_same_dataset, require_splits
from sparseg.training.state import FOLDER as STATE
from sparseg.training.state import has_state
from sparseg.training.stopping import Reason
from sparseg.volumes.atomic import write_bytes_atomically

CONFIG, SPLITS = "config.yaml", "splits.json"
_OTHERS = ("compare.yaml", "fold_*")  # of a comparison and of a cross-validation


def train(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    run_folder: Path,
    config: TrainConfig,
    monitor: Monitor,
    *,
    resume: bool = False,
    until: int | None = None,
    init: Path | None = None,
    splits: Path | None = None,
    cache: Path | None = None,
    notes: Mapping[str, str] | None = None,
    on_size: Callable[[int, int, Path], None] = lambda *_: None,
    on_case: Callable[[str], None] = lambda _: None,
) -> tuple[Run, Reason, int | None]:
    """Train on a dataset; see `Run.train`. Of several processes all call it, with the same arguments.

    Args:
        dataset: From `open_dataset`.
        facts: From `open_dataset`.
        run_folder: Made here; must not hold a run unless it is resumed.
        config: Settings; with `resume` those the run was started with (`stored_config`).
        monitor: Watches the run.
        until: Stop after this many steps; a resumed run goes on from there.
        init: Pre-training, model or foreign checkpoint whose encoder a new run starts from.
        resume: Go on from the last stored state, with the splits the run was started with.
        splits: File of folds; by default the dataset's own, else new ones. The run folder keeps them.
        cache: Folder of prepared cases; by default in the user's cache folder.
        notes: Further text files for a new run folder, name -> content.
        on_size: Called with bytes, number of cases and folder before the cache is written.
        on_case: Called with each case's name when it is prepared.

    Returns:
        The run, why it ended, and the signal if one stopped it.

    Raises:
        ConfigError: the run folder already holds a run, or one of other classes or channels is resumed.
        DatasetError: a run is resumed with other cases than it was started with, or without its folds.
    """
    require_precision(config.precision)
    require_free(run_folder, resume=resume)
    if resume and has_state(run_folder):
        require_same_dataset(run_folder, dataset, facts)
        splits = run_folder / SPLITS
        require_splits(splits, dataset.training)
    # A wrong setting fails here, before anything is prepared.
    net = make_network(dataset, config)
    kind_of(config.loss, regions=bool(dataset.regions))
    data = in_turns(
        partial(
            load_training_data,
            dataset,
            facts,
            config,
            chunk=margin_size(net.config.roi_size),
            splits=splits,
            cache=cache,
            on_size=on_size,
            on_case=on_case,
        )
    )
    run_folder.mkdir(parents=True, exist_ok=True)
    run = Run(dataset, data, config, run_folder, monitor, init=None if resume else init)
    if resume:
        run.resume()
    if run.accelerator.is_main_process:
        report = {} if run.init_report is None else {"init.txt": run.init_report.describe() + "\n"}
        _write_notes(run_folder, run, facts, {} if resume else {**(notes or {}), **report})
    reason, received = run.train(until=until)
    return run, reason, received


def _write_notes(folder: Path, run: Run, facts: Sequence[CaseFacts], notes: Mapping[str, str]) -> None:
    """Settings, folds and manifest of the run; a resumed one may have been given another length."""
    if not has_state(folder):
        (folder / "log.jsonl").unlink(missing_ok=True)
    write_bytes_atomically(folder / CONFIG, to_yaml(run.config).encode())
    # Before the folds, and with a place for the state: folds and models without these are somebody else's.
    write_manifest(folder, run.dataset, facts, run.config, num_processes=run.accelerator.num_processes)
    (folder / STATE).mkdir(exist_ok=True)
    write_splits(folder / SPLITS, run.data.splits)
    for name, text in notes.items():
        write_bytes_atomically(folder / name, text.encode())


def require_free(run_folder: Path, *, resume: bool) -> None:
    """Refuse to start a new run where one is, or what it would overwrite.

    What a start that was cut off left behind is not in the way.

    Raises:
        ConfigError: the folder holds a run, models, a cross-validation, a comparison or folds.
    """
    if resume or not run_folder.is_dir():
        return
    if has_state(run_folder):
        raise ConfigError(
            "a new run needs an empty folder",
            received="a folder that already holds a run",
            remedy="choose another --out, or go on with --resume",
            where=run_folder,
        )
    in_the_way = [path.name for pattern in _OTHERS for path in sorted(run_folder.glob(pattern))]
    if not (run_folder / STATE).is_dir():  # a run that died at its first validation left its state/ empty
        in_the_way += [name for name in ("best", "last") if (run_folder / name).is_dir()]
    if (run_folder / SPLITS).is_file() and not (run_folder / MANIFEST).is_file():
        in_the_way.append(SPLITS)
    if in_the_way:
        raise ConfigError(
            "a new run needs an empty folder",
            received=f"a folder that holds {some(in_the_way)}",
            remedy="choose another --out",
            where=run_folder,
            code="run-folder",
        )


def stored_config(run_folder: Path) -> TrainConfig:
    """The settings a run was started with.

    Raises:
        ConfigError: no run there.
    """
    if not (run_folder / CONFIG).is_file():
        raise ConfigError(
            "a run to resume must be there",
            received=f"no {CONFIG}",
            remedy="start it without --resume first",
            where=run_folder,
        )
    return parse_config(TrainConfig, load_yaml(run_folder / CONFIG), where=run_folder / CONFIG)


def is_restart(run_folder: Path) -> bool:
    """Whether torchrun started this process anew after a failure, and the run it was at can go on.

    The manifest tells that the folder holds a run of this very command, not one that stands in the way of it.
    """
    if not num_restarts() or not has_state(run_folder):
        return False
    return bool(read_manifest(run_folder).get("command") == sys.argv)
