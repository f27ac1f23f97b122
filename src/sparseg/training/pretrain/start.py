"""Start or resume a pre-training in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sparseg.config import load_yaml, parse_config, to_yaml
from sparseg.datasets.cache import build_cache, default_folder
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.errors import ConfigError
from sparseg.training.data import default_preprocess
from sparseg.training.log import LOG
from sparseg.training.pretrain.config import PretrainConfig, segmenter_config
from sparseg.training.pretrain.loop import PretrainData, PretrainMonitor, PretrainRun
from sparseg.training.ranks import in_turns, require_precision
from sparseg.training.start import require_free
from sparseg.training.stopping import Reason
from sparseg.volumes.atomic import write_bytes_atomically

CONFIG = "config.yaml"


def pretrain(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    run_folder: Path,
    config: PretrainConfig,
    monitor: PretrainMonitor,
    *,
    resume: bool = False,
    cache: Path | None = None,
    on_size: Callable[[int, int, Path], None] = lambda *_: None,
    on_case: Callable[[str], None] = lambda _: None,
) -> tuple[PretrainRun, Reason, int | None]:
    """Pre-train an encoder on images. Of several processes all call it, with the same arguments.

    Args:
        dataset: From `open_images`.
        facts: From `open_images`.
        run_folder: Made here; must not hold a run unless it is resumed.
        config: Settings; with `resume` those the run was started with (`stored_config`).
        monitor: Watches the run.
        resume: Go on from the last stored state.
        cache: Folder of prepared cases; by default in the user's cache folder.
        on_size: Called with bytes, number of cases and folder before the cache is written.
        on_case: Called with each case's name when it is prepared.

    Returns:
        The run, why it ended, and the signal if one stopped it.

    Raises:
        ConfigError: the run folder already holds a run, or a setting that does not fit the images.
    """
    require_precision(config.precision)
    require_free(run_folder, resume=resume)
    model = segmenter_config(config, len(dataset.channels))  # fails before anything is prepared
    preprocess = config.preprocess or default_preprocess(dataset, facts)
    # Stored as resolved: a resumed run must not prepare its images in another way.
    config = config.model_copy(update={"preprocess": preprocess})
    images = in_turns(
        partial(
            build_cache,
            dataset,
            facts,
            preprocess,
            cases=dataset.training,
            folder=default_folder() if cache is None else cache,
            chunk=model.roi_size,
            on_size=on_size,
            on_case=on_case,
        )
    )
    run_folder.mkdir(parents=True, exist_ok=True)
    data = PretrainData(dataset.name, dataset.channels, images, preprocess)
    run = PretrainRun(data, config, run_folder, monitor)
    if resume:
        run.resume()
    if run.accelerator.is_main_process:
        if not resume:
            (run_folder / LOG).unlink(missing_ok=True)
        write_bytes_atomically(run_folder / CONFIG, to_yaml(config).encode())
    reason, received = run.train()
    return run, reason, received


def stored_config(run_folder: Path) -> PretrainConfig:
    """The settings a pre-training was started with.

    Raises:
        ConfigError: no run there, or a run of `sparseg train`.
    """
    if not (run_folder / CONFIG).is_file():
        raise ConfigError(
            "a run to resume must be there",
            received=f"no {CONFIG}",
            remedy="start it without --resume first",
            where=run_folder,
        )
    return parse_config(PretrainConfig, load_yaml(run_folder / CONFIG), where=run_folder / CONFIG)
