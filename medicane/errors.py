"""The one exception that means: the input is at fault, not the program."""

from __future__ import annotations

import re
from typing import Any

#: What stands before the host in a URI: ``user:password@`` or a token; it may hold an ``@`` itself.
_USER = re.compile(r"(?<=://)[^/\s?#]*@")
#: A query, with or without the rest of its URI: signatures and keys are among its values.
_QUERY = re.compile(r"\?[\w%.~-]+=[^\s'\"<>]*(?<![:;,.)\]}])")


def redacted(text: str) -> str:
    """The text with what may be secret in its URIs left out: users, passwords and queries.

    Whatever tells of a URI (messages, logs, attributes, parameters of runs) passes through here.

    Examples
    --------
    >>> redacted("https://me:pass@host/a.nc?sig=1f2e: no such file")
    'https://***@host/a.nc?***: no such file'
    >>> redacted("s3://bucket/a.zarr and models:/medicane@champion")
    's3://bucket/a.zarr and models:/medicane@champion'
    """
    return _QUERY.sub("?***", _USER.sub("***@", text))


class InputError(ValueError):
    """Bad input, told in one line: where, which law it breaks, what was found; see `redacted`.

    The command line prints it without a traceback and exits with status 2. Anything else that
    escapes is a fault of the program (status 1).

    Examples
    --------
    >>> str(InputError("grids/2020-09.nc: msl", "units must be a pressure", found="'kelvin'"))
    "grids/2020-09.nc: msl: units must be a pressure; found 'kelvin'"
    """

    def __init__(self, where: object, law: str, *, found: object | None = None) -> None:
        message = f"{where}: {law}"
        if found is not None:
            message += f"; found {found}"
        super().__init__(redacted(" ".join(message.split())))

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt from its one line: worker processes send their errors pickled.
        return _restored, (type(self), str(self))


def _restored(kind: type[InputError], message: str) -> InputError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    return error
