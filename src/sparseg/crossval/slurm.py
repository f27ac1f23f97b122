"""Folds as Slurm jobs: through submitit, or as a batch script that needs nothing but sbatch."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sparseg.crossval.folder import CrossValidation
from sparseg.errors import ConfigError, SparsegError
from sparseg.optional import import_optional

# A step of a large model and its checkpoint take less.
_SAVE_SECONDS = 120
_KEY = re.compile(r"[a-z][a-z-]*")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
# Options that submitit knows by a name of its own; all others reach sbatch as they are.
_NAMES = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
    "nodelist": "slurm_nodelist",
    "exclude": "slurm_exclude",
    "mem": "slurm_mem",
}
_NUMBERS = {"gpus": "gpus_per_node", "gpus-per-node": "gpus_per_node", "cpus-per-task": "cpus_per_task"}
_OURS = {"array", "job-name", "output", "error", "open-mode", "signal", "requeue", "nodes", "ntasks"}


def parse_options(text: str) -> dict[str, str]:
    """Read `partition=gpu,time=24:00:00,gpus=1`: options of sbatch without dashes, commas between.

    A comma within a value is written twice.

    Raises:
        ConfigError: not of this form, an option twice, a time Slurm would not take, or an option that is
            decided here.
    """
    options: dict[str, str] = {}
    for part in text.replace(",,", "\0").split(","):
        key, separator, value = part.replace("\0", ",").strip().partition("=")
        if not separator or not value or "\n" in value or not _KEY.fullmatch(key) or key in options:
            raise _refusal("Slurm options must read name=value, each once, with commas between", part)
        if key in _OURS:
            raise _refusal(f"{', '.join(sorted(_OURS))} are decided by sparseg", part)
        options[key] = value
    if "time" in options:
        minutes(options["time"])
    for key in _NUMBERS.keys() & options.keys():
        if not options[key].isdigit():
            raise _refusal(f"{key} must be a whole number", options[key])
    return options


def minutes(time: str) -> int:
    """Minutes of a time limit as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; rounded up.

    Raises:
        ConfigError: none of these, or zero.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise _refusal("a time limit must read minutes, hours:minutes:seconds or days-hours", time)
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, mins, seconds = (*parts, 0, 0)[:3]
    else:
        hours, mins, seconds = {1: (0, *parts, 0), 2: (0, *parts), 3: tuple(parts)}[len(parts)]
    total = ((int(match["days"] or 0) * 24 + hours) * 60 + mins) * 60 + seconds
    if total == 0:
        raise _refusal("a time limit must not be zero", time)
    return -(-total // 60)


@dataclass
class FoldTask:
    """What a submitit job does: train one fold by the command line, and go on with it after a requeue.

    Attributes:
        command: Program and arguments; they start the fold or resume it, whichever applies.
    """

    command: tuple[str, ...]

    def __call__(self) -> int:
        """Run the command.

        Raises:
            SparsegError: it failed, which marks the job as failed.
        """
        # Slurm sends submitit's signal to every process; what is ignored here is ignored in the child.
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL)
        finally:
            signal.signal(signal.SIGUSR2, before)
        code = self._process.wait()
        if code != 0:
            raise SparsegError(
                "the training of a fold must end well",
                received=f"exit code {code}",
                remedy="read the job's log",
                code="fold-failed",
            )
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before the machine is taken away: save, then be submitted again."""
        self._process.send_signal(signal.SIGTERM)
        # This runs within `wait` above, whose lock a second `wait` would wait for without end.
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return _submitit().helpers.DelayedSubmission(FoldTask(self.command))

    def __getstate__(self) -> dict[str, Any]:
        return {"command": self.command}  # a running process cannot be stored


def submit(
    found: CrossValidation, commands: Mapping[int, Sequence[str]], options: Mapping[str, str]
) -> dict[int, str]:
    """Send one job per fold.

    Args:
        found: The cross-validation; `logs/` takes what the jobs print.
        commands: Fold -> command that trains it.
        options: From `parse_options`.

    Returns:
        Fold -> job id.

    Raises:
        MissingExtraError: submitit is not installed.
        ConfigError: no Slurm here.
        SparsegError: Slurm refused the jobs.
    """
    submitit = _submitit()
    try:
        executor = submitit.AutoExecutor(
            folder=found.folder / "logs" / "slurm", cluster="slurm", slurm_max_num_timeout=1000
        )
    except RuntimeError as error:
        raise ConfigError(
            "folds can only be sent where Slurm is",
            received=str(error),
            remedy="run this on a login node, or write a script with --slurm-script",
            where="--slurm",
            code="slurm-none",
        ) from None
    executor.update_parameters(**submitit_parameters(options))
    try:
        with executor.batch():
            jobs = {fold: executor.submit(FoldTask(tuple(command))) for fold, command in commands.items()}
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise _not_sent(str(error)) from None
    return {fold: str(job.job_id) for fold, job in jobs.items()}


def submitit_parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """The options under the names of submitit 1.5."""
    parameters: dict[str, Any] = {"name": "sparseg-cv", "slurm_signal_delay_s": _SAVE_SECONDS}
    others: dict[str, Any] = {"requeue": True}
    for key, value in options.items():
        if key == "time":
            parameters["timeout_min"] = minutes(value)
        elif key in _NUMBERS:
            parameters[_NUMBERS[key]] = int(value)
        elif key in _NAMES:
            parameters[_NAMES[key]] = value
        else:
            others[key] = value
    return {**parameters, "slurm_additional_parameters": others}


def script(found: CrossValidation, command: Sequence[str], options: Mapping[str, str]) -> str:
    """A batch script: one array task per fold that saves and returns to the queue when its time is up.

    Args:
        found: The cross-validation.
        command: Trains one fold or goes on with it; the fold's number is added behind it.
        options: From `parse_options`.
    """
    given = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]
    output = str(found.folder.absolute() / "logs" / "slurm_%A_%a.txt")
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {len(found.folds)} folds, one job each. Send it with: sbatch THIS_FILE",
            "#SBATCH --job-name=sparseg-cv",
            f"#SBATCH --array=0-{len(found.folds) - 1}",
            *given,
            f"#SBATCH --output={shlex.quote(output)}",
            "#SBATCH --open-mode=append",
            "#SBATCH --requeue",
            f"# {_SAVE_SECONDS} s before the time limit: save, and queue again for the rest.",
            f"#SBATCH --signal=B:USR1@{_SAVE_SECONDS}",
            "",
            "again=0",
            """trap 'again=1; kill -TERM "$child" 2>/dev/null' USR1""",
            "# Slurm sends TERM to the training too, which must not get it twice: a second one acts at once.",
            "trap : TERM",
            f'{shlex.join(command)} "$SLURM_ARRAY_TASK_ID" &',
            "child=$!",
            "# A signal ends `wait` before the child has ended.",
            'while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done',
            'if [ "$again" = 1 ]; then',
            '    exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
            "fi",
            'exit "${code:-1}"',
            "",
        ]
    )


def _submitit() -> Any:
    # submitit asks for it at run time without naming it as a requirement; new setuptools have it no more.
    import_optional("pkg_resources", "slurm", purpose="submitit")
    return import_optional("submitit", "slurm", purpose="--slurm")


def _refusal(rule: str, received: str) -> ConfigError:
    return ConfigError(
        rule,
        received=repr(received),
        remedy="e.g. --slurm partition=gpu,time=24:00:00,gpus=1",
        where="--slurm",
        code="slurm-options",
    )


def _not_sent(message: str) -> SparsegError:
    return SparsegError(
        "Slurm must take the jobs",
        received=" ".join(message.split()),
        remedy="correct the options of --slurm",
        code="slurm-refused",
    )
