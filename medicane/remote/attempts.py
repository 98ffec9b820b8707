"""Trying again with back-off, and what is said when that has not helped."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from medicane.errors import redacted

LOG = logging.getLogger(__name__)

#: So often is anything tried, with this wait after the first time and twice the last after others.
TRIES = 5
FIRST_WAIT_S = 0.5
#: Faults that a second try meets again.
_LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_LASTING_NUMBERS = (
    errno.EDQUOT,
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOSYS,
    errno.EPERM,
    errno.EROFS,
)
#: Each library has classes of its own for a connection that fails or ends too early.
_PASSING = (
    "ChecksumError",
    "ConnectionError",
    "ContentLengthError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "PayloadError",
    "ResponseParserError",
    "TimeoutError",
)


async def again(operation: Callable[[], Awaitable[Any]], path: str) -> Any:
    """Try until it goes well, the fault is a lasting one, or it has been tried `TRIES` times.

    `path` is what errors name: whoever opened the place knows its URI.
    """
    wait = FIRST_WAIT_S
    for tries in range(1, TRIES + 1):
        try:
            return await operation()
        except Exception as error:
            if tries == TRIES or not passing(error):
                # Not chained: the libraries' own errors hold URIs with all that is in them.
                raise _plain(error, path.strip("/")) from None
            LOG.info("%s %s: tried again in %g s", type(error).__name__, path, wait)
        await asyncio.sleep(wait)
        wait *= 2
    raise AssertionError("not reached")


def passing(error: BaseException) -> bool:
    """Whether a second try may go better: a fault of the server or on the way, not of the asker."""
    if isinstance(error, _LASTING):
        # fsspec says "not found" of what it could not ask for, and keeps why.
        return error.__cause__ is not None and passing(error.__cause__)
    if any(kind.__name__.endswith(_PASSING) for kind in type(error).__mro__):
        return True
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 425, 429)
    return isinstance(error, OSError) and error.errno not in _LASTING_NUMBERS


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error; None if it is of another kind."""
    for name in ("status", "code"):
        value = str(getattr(error, name, ""))
        if value.isdigit() and int(value) >= 400:
            return int(value)
    return None


def _plain(error: Exception, path: str) -> OSError:
    """The error without what its library has hung on it, and without secrets."""
    if isinstance(error, _LASTING) and isinstance(error.__cause__, Exception) and passing(error):
        return _plain(error.__cause__, path)
    lines = str(error).strip().splitlines()
    text = redacted(lines[0][:300] if lines else type(error).__name__)
    if passing(error):
        where = f"{path}: " if path else ""
        return ConnectionError(f"{where}tried {TRIES} times, at last: {text}")
    for kind in _LASTING:
        if isinstance(error, kind):
            return kind(text)
    if _status(error) in (401, 403) or "Credentials" in type(error).__name__:
        return PermissionError(f"{text}; docs/remote.md says how access is configured")
    return OSError(f"{type(error).__name__}: {text}")


def check_length(found: int, wanted: int) -> None:
    if found != wanted:
        raise ConnectionError(f"{found} of {wanted} bytes came")
