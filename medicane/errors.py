"""The one exception that means: the input is at fault, not the program."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Bad input, told in one line: where, which law it breaks, what was found.

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
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt from its one line: worker processes send their errors pickled.
        return _restored, (type(self), str(self))


def _restored(kind: type[InputError], message: str) -> InputError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    return error
