"""Start or resume a training run in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparseg.config import load_yaml, parse_config, to_yaml
from sparseg.datasets.read import read_dataset
from sparseg.errors import ConfigError
from sparseg.training.config import TrainConfig
from sparseg.training.data import load_training_data
from sparseg.training.loop import Monitor, Run, make_network
from sparseg.training.state import STATE

CONFIG = "config.yaml"


def train(
    dataset_folder: Path,
    run_folder: Path,
    config: TrainConfig,
    monitor: Monitor,
    *,
    resume: bool = False,
    on_case: Callable[[str], None] = lambda _: None,
) -> tuple[Run, int | None]:
    """Train on a dataset folder; see `Run.train`.

    Args:
        dataset_folder: Holds `dataset.json`.
        run_folder: Made here; must not hold a run unless it is resumed.
        config: Settings; with `resume` those the run was started with (`stored_config`).
        monitor: Watches the run.
        resume: Go on from the last stored state.
        on_case: Called with each case's name while the data is prepared.

    Returns:
        The finished run, and the signal that stopped it early or None.

    Raises:
        ConfigError: the run folder already holds a run.
    """
    if not resume and (run_folder / STATE).exists():
        raise ConfigError(
            "a new run needs an empty folder",
            received="a folder that already holds a run",
            remedy="choose another --out, or go on with --resume",
            where=run_folder,
        )
    dataset = read_dataset(dataset_folder)
    make_network(dataset, config)  # a wrong setting fails here, before any case is read
    data = load_training_data(dataset, config, on_case=on_case)
    run_folder.mkdir(parents=True, exist_ok=True)
    run = Run(dataset, data, config, run_folder, monitor)
    if resume:
        run.resume()
    else:
        (run_folder / "log.jsonl").unlink(missing_ok=True)
        (run_folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
    return run, run.train()


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
