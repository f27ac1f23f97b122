"""Many cases by many workers: Ray Data hands each case to one of a pool of actors.

Actors write labels and rows into the one output folder by themselves; here it is only told what became of
each case, and the reports are put together.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from sparseg.errors import ConfigError, InputError, ResourceError, SparsegError
from sparseg.optional import import_optional
from sparseg.predict.batch import CaseMonitor
from sparseg.predict.claims import Claims, this_process
from sparseg.predict.ensemble import load_predictor
from sparseg.predict.fleet_worker import Orders, Outcome, Prepare, Worker
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.job import input_hash
from sparseg.predict.run_folder import RunFolder
from sparseg.predict.settings import PredictSettings

_POLL_S = 0.5
_STORE_BYTES = 128 * 2**20  # what passes through it are numbers of cases
_CLUSTER = "RAY_ADDRESS"


@dataclass(frozen=True)
class Fleet:
    """How many workers, and what each takes.

    Attributes:
        num_workers: At least one.
        threads: CPU threads of each.
    """

    num_workers: int
    threads: int = 1


def predict_fleet(
    models: Sequence[Path],
    settings: PredictSettings,
    cases: Sequence[PredictionCase],
    out: Path,
    monitor: CaseMonitor,
    *,
    fleet: Fleet,
    resume: bool = False,
    prepare: Prepare | None = None,
) -> list[SparsegError]:
    """Segment all cases as `predict_cases` does, by workers on this machine or on those of a Ray cluster.

    A case whose worker dies is given to another one once; then it has failed. The variable RAY_ADDRESS says
    which cluster; without it the workers are processes of this machine that nothing else can reach.

    Args:
        models: Model folders, training runs, or cross-validations (all folds).
        settings: How to run them; the device is that of the workers.
        cases: All cases of the run.
        out: Output folder; with a cluster on storage that all its machines share, as are images and models.
        monitor: Told what happens, in the order in which the cases end.
        fleet: The workers.
        resume: Leave cases alone that are done; other processes that resume may share the folder.
        prepare: Called by each worker with predictor, cases and folder before its first case.

    Returns:
        The errors of the cases that failed, as they came.

    Raises:
        MissingExtraError: no Ray.
        InputError: a cluster that cannot be reached, a worker that does not see the folder or the models, or
            another run at work in the folder.
        ResourceError: Ray could not keep the workers alive.
        OSError: the folder cannot be written to.
    """
    ray = _require_ray()
    device = settings.device
    predictor = load_predictor(models, replace(settings, device="cpu"))  # for the reports, it runs nothing
    predictor.settings = replace(predictor.settings, device=device)
    absolute = [_absolute(case) for case in cases]
    folder = RunFolder(out.absolute(), absolute, predictor)
    owner = this_process("resume" if resume else "alone", folder.key.settings_sha256)
    beacon = f".fleet-{owner.token}"
    orders = Orders(
        models=tuple(model.absolute() for model in models),
        settings=settings,
        cases=tuple(absolute),
        out=folder.out,
        owner=owner,
        beacon=beacon,
        resume=resume,
        threads=fleet.threads,
        prepare=prepare,
    )
    try:
        folder.make()
        with Claims(folder.rows, owner) as claims:
            claims.enter_run(when_alone=folder.sweep)
            claims.take(beacon)
            if not resume:
                folder.start_over(absolute)
            run = _FleetRun(orders, folder, claims, cases, monitor)
            try:
                run.run(ray, fleet)
            finally:
                if len(cases) == 1 and run.errors:
                    folder.forget()
                folder.refresh(at_once=True)
    finally:
        folder.remove_if_empty()
    return run.errors


class _FleetRun:
    """Rounds over the cases until each is done by somebody; usually there is one."""

    def __init__(
        self,
        orders: Orders,
        folder: RunFolder,
        claims: Claims,
        shown: Sequence[PredictionCase],
        monitor: CaseMonitor,
    ) -> None:
        self.orders = orders
        self.folder = folder
        self.claims = claims
        self.shown = shown  # as the user called them
        self.monitor = monitor
        self.errors: list[SparsegError] = []

    def run(self, ray: ModuleType, fleet: Fleet) -> None:
        """Do all that others do not do, and then what they left."""
        numbers = list(range(len(self.shown)))
        with _running(ray, fleet, self.orders.settings.device):
            while numbers:
                elsewhere = []
                for outcome in _outcomes(ray, self.orders, numbers, fleet):
                    if self._take_in(outcome):
                        self._refresh()
                    else:
                        elsewhere.append(outcome.number)
                if elsewhere:
                    self.monitor.on_wait(len(elsewhere))
                numbers = self._wait_for(elsewhere)

    def _take_in(self, outcome: Outcome) -> bool:
        """Tell what became of a case; False if another process has it."""
        case = self.shown[outcome.number]
        if outcome.unfit and outcome.error is not None:
            raise outcome.error
        if outcome.why:
            self.monitor.on_redo(case, outcome.why)
        if outcome.error is not None:
            self.errors.append(outcome.error)
            self.monitor.on_error(case, outcome.error)
        elif outcome.result is not None:
            self.monitor.on_done(case, outcome.result)
        elif outcome.reused is not None:
            self.monitor.on_reused(case, outcome.reused)
        else:
            return False
        return True

    def _wait_for(self, numbers: list[int]) -> list[int]:
        """Wait until no other process has one of these; return those that were left undone."""
        undone = []
        while numbers:
            waiting = []
            for number in numbers:
                case = self.orders.cases[number]
                if not self.claims.take(case.name):
                    waiting.append(number)
                    continue
                sha256 = input_hash(case)
                row = self.folder.row_of(case)
                if sha256 is None or row is None or self.folder.why_redo(case, sha256) is not None:
                    undone.append(number)
                else:
                    self.monitor.on_reused(self.shown[number], row)
                self.claims.drop(case.name)
            numbers = waiting
            if numbers:
                time.sleep(_POLL_S)
        return undone

    def _refresh(self) -> None:
        # A single image that failed leaves nothing behind.
        if len(self.shown) == 1 and self.errors:
            return
        with suppress(SparsegError, OSError):
            self.folder.refresh()


def _absolute(case: PredictionCase) -> PredictionCase:
    """The case for processes that work in another folder."""
    return replace(
        case,
        image=case.image.absolute(),
        output=case.output.absolute(),
        channels=tuple(path.absolute() for path in case.channels),
    )


def _require_ray() -> ModuleType:
    """Ray with Ray Data, told to send no statistics and, by itself, to be reachable from this machine alone.

    Raises:
        MissingExtraError: not installed.
    """
    # Ray reads all of these when it is imported.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what Ray Data does by itself
    if _CLUSTER not in os.environ:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux, too: listen on loopback only
        # Other users of this machine could have the workers run their code otherwise.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import_optional("ray.data", "ray", purpose="--ray")
    return import_optional("ray", "ray", purpose="--ray")


@contextmanager
def _running(ray: ModuleType, fleet: Fleet, device: str) -> Iterator[None]:
    """Start Ray or connect to a cluster, without a word of its own; end it with all it started."""
    with _keeping_sigterm():
        try:
            _start(ray, fleet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                "Ray must start here, or its cluster be reachable",
                received=type(error).__name__,
                remedy=f"check {_CLUSTER} and `ray status`, or unset it to use this machine",
                where=os.environ.get(_CLUSTER, "--ray"),
                code="fleet-start",
            ) from error
    try:
        _require_gpus(ray, fleet, device)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    except ray.exceptions.RayError as error:
        raise ResourceError(
            "the workers of a fleet must be kept alive",
            received=type(error).__name__,
            remedy="look into Ray's logs; what is complete stays, and --resume goes on",
            where="--ray",
            code="fleet-lost",
        ) from error
    finally:
        ray.shutdown()


def _start(ray: ModuleType, fleet: Fleet) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if _CLUSTER in os.environ:
        ray.init(**quiet)
        return
    ray.init(
        address="local",
        num_cpus=fleet.num_workers * fleet.threads,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        **quiet,
    )


def _require_gpus(ray: ModuleType, fleet: Fleet, device: str) -> None:
    found = int(ray.cluster_resources().get("GPU", 0))
    if device.startswith("cuda") and found < fleet.num_workers and _CLUSTER not in os.environ:
        raise ConfigError(
            "each worker takes a GPU of its own",
            received=f"{fleet.num_workers} workers, {found} GPUs",
            remedy=f"give --ray {found} or --device cpu" if found else "give --device cpu",
            where="--ray",
            code="fleet-gpus",
        )


def _outcomes(ray: ModuleType, orders: Orders, numbers: Sequence[int], fleet: Fleet) -> Iterator[Outcome]:
    """What becomes of the cases of these numbers, as they end."""
    data = ray.data
    # One block and one task per case: it goes to whoever is free, and what dies with a worker is one case.
    items = data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    is_cuda = orders.settings.device.startswith("cuda")
    size = min(fleet.num_workers, len(numbers))
    results = items.map_batches(
        Worker,
        batch_size=1,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
        fn_constructor_args=(orders,),
        # Ray Data counts by the one or the other.
        num_cpus=None if is_cuda else fleet.threads,
        num_gpus=1 if is_cuda else None,
    )
    for row in results.iter_rows():
        yield row["outcome"]


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray replaces what is done on SIGTERM; ours ends the run in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, ours)
