"""`sparseg`: the application, its exit codes and its one-line errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import cyclopts

from sparseg import __version__
from sparseg.cli import (
    bench,
    cache,
    calibrate,
    check,
    compare,
    cv,
    evaluate,
    info,
    model,
    plan,
    predict,
    pretrain,
    sample,
    sparsify,
    synth,
    train,
    view,
)
from sparseg.cli.output import print_error
from sparseg.errors import InputError, SparsegError

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
WRONG_PATH = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

app = cyclopts.App(
    name="sparseg",
    version=__version__,
    help="Fast 3-D medical image segmentation with token sparsification. Not a medical device.",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `run` says what became of the files
)
for command in (
    info.info,
    check.check,
    plan.plan,
    pretrain.pretrain,
    train.train,
    cv.cv,
    compare.compare,
    predict.predict,
    view.view,
    calibrate.calibrate,
    evaluate.evaluate,
    sparsify.sparsify,
    synth.synth,
    sample.app,
    cache.app,
    model.app,
    bench.app,
):
    app.command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0 done, 1 failed, 2 bad input or usage, 130 interrupted.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        result = app(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        command = " ".join(["sparseg", *(error.command_chain or ())])
        print_error(f"{' '.join(str(error).split())} See `{command} --help`.")
        return EXIT_BAD_INPUT
    except SparsegError as error:
        print_error(str(error))
        return EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_FAILED
    except OSError as error:
        # Reading and writing raise typed errors where sparseg knows the file; this is the rest.
        what = f"{error.filename or 'file system'}: {error.strerror or type(error).__name__}"
        print_error(f"{what}; check the path, its permissions and free space")
        return EXIT_BAD_INPUT if isinstance(error, WRONG_PATH) else EXIT_FAILED
    except KeyboardInterrupt:
        print_error("interrupted; files already complete are kept")
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the `sparseg` command."""
    sys.exit(run())
