"""A dask cluster as the steps use it: its workers do tasks, and one of each process at a time.

Which cluster it is does not matter: all that is known of it is the address of its scheduler. A task
that is lost with its worker is done again by another one, so that a task must not depend on who
does it, nor write anything.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import xarray as xr

from medicane import __version__
from medicane.errors import InputError
from medicane.store import OPEN_FILES

if TYPE_CHECKING:
    from distributed import Client, Worker

LOG = logging.getLogger(__name__)

#: Seconds in which a scheduler must answer.
PATIENCE = 20
#: Tasks that each worker has or has done, and nobody has taken yet.
AHEAD = 4

#: Does a function for each item of its arguments on the workers: the results, in order.
Each = Callable[..., Iterable[Any]]

# --- here -----------------------------------------------------------------------------------------


@contextmanager
def connected(address: str, *, name: str, model: Path | None = None) -> Iterator[Client]:
    """A client of the scheduler at an address.

    Parameters
    ----------
    name
        Of what is done: no other run has it.
    model
        A file that every worker gets, those that come later too; see `model_of`.

    Raises
    ------
    InputError
        If no scheduler answers, or it ends in the body; if a worker has no medicane, or loses its
        life at one task again and again.
    """
    try:
        from distributed import Client, KilledWorker
        from distributed.client import FutureCancelledError
        from distributed.comm import CommClosedError
        from distributed.diagnostics.plugin import UploadFile
    except ImportError as error:
        raise InputError(
            "--scheduler", "needs dask.distributed: pip install 'medicane[cluster]'", found=error
        ) from None
    where = f"--scheduler {address}"
    # What it has to say of a lost scheduler is told below, in one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        # What this process computes for itself, it goes on computing itself.
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(where, "a dask scheduler must answer there", found=error) from error
    with ExitStack() as ending:
        ending.callback(client.close)
        try:
            _check_workers(client, where)
            if model is not None:
                sent = UploadFile(str(model), load=False)
                sent.filename = f"{name}.keras"
                client.register_plugin(sent, name=name)
                ending.callback(_forget, client, name)
            yield client
        except KilledWorker as error:
            law = f"a worker must have the memory for a block of maps, and medicane {__version__}"
            raise InputError(where, law, found=error) from None
        except (CommClosedError, FutureCancelledError) as error:
            law = "the scheduler must not end"
            raise InputError(where, law, found=error) from ConnectionError(law)


def _forget(client: Client, name: str) -> None:
    """Workers that come from now on need not have the model."""
    with suppress(OSError, TimeoutError):  # where the scheduler has ended, there will be none
        client.unregister_worker_plugin(name)


def _check_workers(client: Client, where: str) -> None:
    """Refuse workers without medicane: at their first task they would end without a word."""
    # Of functions that every Python has; one of medicane's own could not be told to them.
    versions = client.run(eval, "__import__('medicane').__version__", on_error="return")
    if not versions:
        LOG.warning("%s: there is no worker yet: waiting for one", where)
    for worker, version in versions.items():
        if version != __version__ and not isinstance(version, OSError):  # that one is gone
            raise InputError(f"worker {worker}", f"must have medicane {__version__}", found=version)


def tasks_of(client: Client) -> Each:
    """Tasks of a cluster, as steps hand them out: some for each worker ahead of what is taken.

    Results wait in the memory of the workers; there are no more of them than tasks ahead.
    """

    def each(function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        # In order: of several faults, the one that is told is the one that comes first in time.
        waiting: deque[Any] = deque()
        for one in zip(*arguments, strict=True):
            waiting.append(client.submit(function, *one, pure=False))
            if len(waiting) >= AHEAD * max(1, client.scheduler_info(n_workers=0)["n_workers"]):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return each


def everywhere(file: str) -> str:
    """A path that means the same in another folder."""
    return file if "://" in file else os.path.abspath(file)


# --- on a worker ----------------------------------------------------------------------------------

#: Held by the one task of a process that is at work: the NetCDF library is not thread-safe, and a
#: second block beside the first would take its memory.
_AT_WORK = threading.Lock()
#: As the GNU C library numbers them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@contextmanager
def at_work(version: str) -> Iterator[None]:
    """This process alone on a task, with no more threads and open files than it should have.

    The files stay open from task to task, and so does the bound on their number; memory that an
    array had is kept for the next one.

    Parameters
    ----------
    version
        Of medicane, where the task was handed out.

    Raises
    ------
    InputError
        If this is another version.
    """
    worker = _worker()
    if version != __version__:
        raise InputError(
            f"worker {worker.address}", f"must have medicane {version}", found=__version__
        )
    threads = worker.state.nthreads
    # Read when TensorFlow or OpenVINO starts, which would take all cores of the machine otherwise.
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
    _keep_memory()
    with _AT_WORK, dask.config.set(scheduler="threads", num_workers=threads):
        # For good: a cache that shrinks closes files, and closes them behind the library's lock.
        if xr.get_options()["file_cache_maxsize"] != OPEN_FILES:
            xr.set_options(file_cache_maxsize=OPEN_FILES)
        yield


@cache
def _keep_memory() -> None:
    """Undo what dask tells the memory allocator of its workers, for good.

    They give every array back to the system at once (MALLOC_TRIM_THRESHOLD_ of 64 KiB), which
    clears a page at a time for the next one: two fifths of the time of detection. These two are
    where the GNU allocator stops when nobody tells it anything (mallopt(3)); there may be another.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, mebibytes in ((_M_MMAP_THRESHOLD, 32), (_M_TRIM_THRESHOLD, 64)):
            mallopt(option, mebibytes * 2**20)


def model_of(name: str) -> Path:
    """The model that was sent to this worker for a run of this name."""
    return Path(_worker().local_directory) / f"{name}.keras"


def check_visible(files: Iterable[str]) -> None:
    """Refuse files that this worker does not see.

    Raises
    ------
    InputError
        Naming worker and file.
    """
    for file in files:
        if "://" not in file and not os.path.exists(file):
            raise InputError(
                f"worker {_worker().address}: {file}",
                "each worker must see the grids under the path that they have here",
                found="nothing there",
            )


def _worker() -> Worker:
    from distributed import get_worker

    return get_worker()
