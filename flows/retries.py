"""When a task is worth a second try: a fault of reading or writing, never of what was read."""

from typing import Any

#: Seconds before the second, third and fourth try.
DELAYS = [2, 10, 30]


def io_fault(task: Any, task_run: Any, state: Any) -> bool:
    """True where the task failed on a file, a disk or a connection.

    Bad input (`InputError`) stays bad, and a fault of the program is not cured by running it again.
    An `InputError` that was caused by a connection is the one exception: the tracking server may
    come back.
    """
    try:
        state.result()
    except Exception as error:
        return _is_io(error) or (error.__cause__ is not None and _is_connection(error.__cause__))
    return False


def _is_io(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(
        error, (FileNotFoundError, PermissionError)
    )


def _is_connection(error: BaseException) -> bool:
    return (
        isinstance(error, (ConnectionError, TimeoutError)) or "Connection" in type(error).__name__
    )


#: The keyword arguments of every task that reads or writes.
ON_IO_FAULT: dict[str, Any] = {
    "retries": len(DELAYS),
    "retry_delay_seconds": DELAYS,
    "retry_condition_fn": io_fault,
}
