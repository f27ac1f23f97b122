"""Trackers: where a run's numbers and pictures go besides its own log.

None is loaded unless it is asked for by name. TensorBoard and MLflow write into the run folder.
Only wandb may use the network, as its own settings say; `wandb offline` keeps it local.
"""

from __future__ import annotations

import math
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sparseg.errors import ConfigError
from sparseg.optional import import_optional

if TYPE_CHECKING:
    from sparseg.training.monitor import StepInfo


class Tracker(Protocol):
    """One place that keeps numbers and pictures of a run."""

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep numbers by name, e.g. `train/loss`; those that are not finite are left out."""

    def log_image(self, step: int, name: str, path: Path) -> None:
        """Keep a picture (PNG)."""

    def close(self) -> None:
        """Write out what is waiting; nothing may be logged afterwards."""


class TensorBoardTracker:
    """Event files in `folder/tensorboard`; look at them with `tensorboard --logdir RUN`.

    Args:
        folder: Run folder.
        resumed_from: Last step that is kept; what was written behind it is no longer shown.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, resumed_from: int | None = None) -> None:
        module = import_optional("torch.utils.tensorboard", "tensorboard", purpose="the tracker tensorboard")
        self._writer: Any = module.SummaryWriter(
            log_dir=str(folder / "tensorboard"), purge_step=None if resumed_from is None else resumed_from + 1
        )

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in finite(values).items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, step: int, name: str, path: Path) -> None:
        """See `Tracker`."""
        self._writer.add_image(name, read_png(path), step, dataformats="HWC")

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases named after the folder; a resumed run goes on under the same id.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, folder: Path, _resumed_from: int | None = None) -> None:
        self._wandb = import_optional("wandb", "wandb", purpose="the tracker wandb")
        self._run: Any = self._wandb.init(
            project="sparseg",
            name=folder.name,
            id=_stored_id(folder / "wandb_id.txt", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(folder),
            # By itself it would send the printed lines, the command and the host: names of cases and folders.
            settings=self._wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        # wandb's own step must never fall, but a resumed run goes back to its last checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **finite(values)})

    def log_image(self, step: int, name: str, path: Path) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, name: self._wandb.Image(str(path))})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MLflowTracker:
    """A run of MLflow in `folder/mlflow.db`; look at it with `mlflow ui --backend-store-uri sqlite:///...`.

    Raises:
        MissingExtraError: mlflow is not installed.
    """

    def __init__(self, folder: Path, _resumed_from: int | None = None) -> None:
        # From 3.2 on MLflow reports its use over the network unless told not to, when it is imported.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        purpose = "the tracker mlflow"
        module = import_optional("mlflow", "mlflow", purpose=purpose)
        self._metric: Any = import_optional("mlflow.entities", "mlflow", purpose=purpose).Metric
        folder = folder.absolute()
        client: Any = module.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        self._client = client
        self._id = _stored_id(folder / "mlflow_id.txt", lambda: _new_mlflow_run(client, folder))

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        metrics = [self._metric(_mlflow_name(name), v, now, step) for name, v in finite(values).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def log_image(self, step: int, name: str, path: Path) -> None:
        """See `Tracker`."""
        self._client.log_artifact(self._id, str(path), artifact_path=f"{_mlflow_name(name)}/{step}")

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id)


_KINDS: dict[str, Callable[[Path, int | None], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MLflowTracker,
}
NAMES = tuple(_KINDS)


def make_trackers(names: Sequence[str], folder: Path, *, resumed_from: int | None = None) -> list[Tracker]:
    """Open trackers by name, each once.

    Args:
        names: Among `NAMES`.
        folder: Run folder; must exist.
        resumed_from: Step a resumed run goes on from.

    Raises:
        ConfigError: an unknown name; nothing is opened then.
        MissingExtraError: the package is not installed; those opened before are closed.
    """
    for name in names:
        if name not in _KINDS:
            raise ConfigError(
                "a tracker must be known",
                received=name,
                remedy=f"choose among {', '.join(NAMES)}",
                where="trackers",
            )
    opened: list[Tracker] = []
    try:
        for name in dict.fromkeys(names):
            opened.append(_KINDS[name](folder, resumed_from))
    except ImportError:
        for tracker in opened:
            tracker.close()
        raise
    return opened


def step_scalars(info: StepInfo, selection: Mapping[str, float] | None = None) -> dict[str, float]:
    """What trackers keep of a step; `selection` as in `sparseg.training.selection_stats`."""
    return {
        "train/loss": info.loss,
        "train/lr": info.lr,
        "speed/crops_per_second": info.crops_per_second,
        "speed/data_wait_share": info.data_wait,
        "speed/memory_gb": info.memory_bytes / 1e9,
        "train/skipped_steps": info.skipped,
        **{f"selection/{name}": value for name, value in (selection or {}).items()},
    }


def validation_scalars(dice: Mapping[str, float], mean: float) -> dict[str, float]:
    """What trackers keep of a validation: Dice per output, and their mean."""
    return {"validation/mean_dice": mean, **{f"validation/dice/{name}": v for name, v in dice.items()}}


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The finite ones, as plain floats."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def read_png(path: Path) -> np.ndarray:
    """Read a picture as `[H, W, 3]` uint8."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _stored_id(path: Path, create: Callable[[], str]) -> str:
    """The id a resumed run started with, else a new one, which is kept."""
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    made = create()
    path.write_text(f"{made}\n", encoding="utf-8")
    return made


def _new_mlflow_run(client: Any, folder: Path) -> str:
    found = client.get_experiment_by_name("sparseg")
    if found is None:
        place = (folder / "mlflow_artifacts").as_uri()
        experiment = client.create_experiment("sparseg", artifact_location=place)
    else:
        experiment = found.experiment_id
    return str(client.create_run(experiment, run_name=folder.name).info.run_id)


def _mlflow_name(name: str) -> str:
    """The name with what MLflow does not take in one (brackets, commas) replaced."""
    return re.sub(r"[^\w./ -]", "_", name)
