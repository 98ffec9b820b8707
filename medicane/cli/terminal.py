"""How a command speaks and ends: what it says, its progress bar, one line for what went wrong.

Exit status 0 on success; 2 on bad usage or bad input, with one line on standard error; 1 on a fault
of the program. ``--debug`` shows the traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from medicane import __version__
from medicane.errors import InputError, redacted

if TYPE_CHECKING:
    from medicane.pipeline import Progress

app = App(
    name="medicane",
    help="Find Mediterranean hurricanes in sequences of weather maps.",
    help_epilogue="With --debug, any command shows the traceback of what it fails with.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # told, and with a status of its own, in `_status`
)

#: Faults that are neither the user's nor the program's.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

ConfigFile = Annotated[Path, Parameter(name="--config")]


_at_once = False


def run(application: App, argv: Sequence[str] | None = None) -> None:
    """Run one command of an application and exit with its status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words

    def command() -> object:
        return application(
            [word for word in words if word != "--debug"],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )

    status = _status(command, debug=debug)
    if _at_once:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def end_at_once() -> None:
    """Have the process end without taking TensorFlow apart: its collectives may hang in that."""
    global _at_once
    _at_once = True


def _status(command: Callable[[], object], *, debug: bool) -> int:
    """Run a command; bad input becomes one line and 2, anything else one line and 1."""
    for name, value in (
        ("TF_CPP_MIN_LOG_LEVEL", "2"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
    ):
        os.environ.setdefault(name, value)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Its only message at this level is of retracing: a period's opening has a length of its own.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # It logs the traceback of what it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # Of reads that were under way when one failed, which is told.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        command()
    except KeyboardInterrupt:
        sys.stderr.write("medicane: interrupted; what was committed stays, run again to go on\n")
        return 130
    except Exception as error:
        if debug:
            sys.stderr.write(redacted(traceback.format_exc()))
        if isinstance(error, InputError):
            sys.stderr.write(f"medicane: {error}\n")
            return 2
        if isinstance(error, CycloptsError):
            sys.stderr.write(f"medicane: {' '.join(str(error).split())} (see --help)\n")
            return 2
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            where = "" if error.filename is None else f"{error.filename}: "
            sys.stderr.write(
                f"medicane: {where}{error.strerror}; what was committed stays, run again to go on\n"
            )
            return 1
        told = redacted((str(error).strip().splitlines() or [""])[0])
        sys.stderr.write(
            f"medicane: internal failure: {type(error).__name__}: {told} (--debug shows where)\n"
        )
        return 1
    return 0


@contextmanager
def _hushed() -> Iterator[None]:
    """Hold back what native code writes to standard error; give it out if the body raises.

    TensorFlow tells of the CPU and of missing GPUs while it is imported, whatever its log level
    says; an error of the user's would drown in that.
    """
    if "--debug" in sys.argv:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        shown = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(shown, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def tracked_at(config: Path | None, uri: str | None) -> str:
    """Where runs are tracked: as said, as configured, as the environment says, or here."""
    from medicane import experiments
    from medicane.config import load_config

    if uri is not None and config is not None:
        raise InputError("--tracking-uri", "must not be given with --config", found=uri)
    if config is not None:
        return experiments.tracking_uri(load_config(config))
    here = experiments.default_tracking_uri(Path())
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or here


def start_keras() -> None:
    with _hushed():
        import keras

        keras.ops.zeros(1)  # devices are looked for when the first of them is used


def say(text: str) -> None:
    sys.stdout.write(redacted(text) + "\n")
    sys.stdout.flush()


@contextmanager
def bar(name: str) -> Iterator[Progress | None]:
    """A progress bar on a terminal, silence elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn(name),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
