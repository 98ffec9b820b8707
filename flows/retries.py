"""When a task is worth a second try: a fault of reading or writing, never of what was read."""

from collections.abc import Iterator
from typing import Any

#: Seconds before the second, third and fourth try.
DELAYS = [2, 10, 30]

#: Faults of the file system that a second try meets again.
_LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def io_fault(task: Any, task_run: Any, state: Any) -> bool:
    """True where the task failed on a file, a disk or a connection.

    Bad input stays bad, and a fault of the program is not cured by running it again. What a lost
    connection lies behind is tried again, even an `InputError`: the server may come back. (The
    client of MLflow raises an exception of its own while handling that of the connection.)
    """
    try:
        state.result()
    except Exception as error:
        if any(_is_connection(link) for link in _chain(error)):
            return True
        return isinstance(error, OSError) and not isinstance(error, _LASTING)
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_connection(error: BaseException) -> bool:
    # Each HTTP library has classes of its own: ClientConnectionError, ReadTimeoutError …
    return any(
        kind.__name__.endswith(("ConnectionError", "TimeoutError")) for kind in type(error).__mro__
    )


#: The keyword arguments of every task that reads or writes.
ON_IO_FAULT: dict[str, Any] = {
    "retries": len(DELAYS),
    "retry_delay_seconds": DELAYS,
    "retry_condition_fn": io_fault,
}
