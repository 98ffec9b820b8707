"""The Climate Data Store, through its own client ``cdsapi``: one request a month and kind of level.

The client finds its address and key by itself: ``~/.cdsapirc``, or ``CDSAPI_URL`` and
``CDSAPI_KEY``. Neither the key nor the addresses that it downloads from are told or logged.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from medicane.errors import InputError, redacted
from medicane.fetch.months import LONG_NAMES, Month
from medicane.remote import needs

#: What each kind of level is called.
DATASETS = {
    "single": "reanalysis-era5-single-levels",
    "levels": "reanalysis-era5-pressure-levels",
}

#: So often is anything asked; at most so many seconds between two times, and between two looks at
#: whether a request is ready.
TRIES = 5
LONGEST_WAIT_S = 60.0


def request(month: Month) -> dict[str, Any]:
    """What is asked of the data set of a month's kind.

    The days and hours are those of the month's times; they are the same on every day but, in a
    period that begins or ends within one, the first and the last.
    """
    times = pd.DatetimeIndex(month.times)
    area = month.domain
    return {
        "product_type": ["reanalysis"],
        "variable": [LONG_NAMES[name] for name in month.variables],
        **({"pressure_level": [str(level) for level in month.levels]} if month.levels else {}),
        "year": [f"{times[0]:%Y}"],
        "month": [f"{times[0]:%m}"],
        "day": sorted({f"{time:%d}" for time in times}),
        "time": sorted({f"{time:%H}:00" for time in times}),
        "area": [area.north, area.west, area.south, area.east],
        "data_format": "netcdf",
        "download_format": "unarchived",
    }


def download(month: Month, path: Path, *, key: str | None = None) -> None:
    """Ask for a month, wait until it is ready, and download it.

    Parameters
    ----------
    path
        The file, which is written from its first byte to its last.
    key
        Instead of the one that the client finds.

    Raises
    ------
    InputError
        If there is no key, the store refuses the request, or it does not answer.
    """
    needs("cdsapi", "medicane fetch --source cds")
    import cdsapi
    import requests

    where = f"Climate Data Store: {month.path.name}"
    try:
        with _quiet():
            client = cdsapi.Client(
                key=key, quiet=True, progress=False, retry_max=TRIES, sleep_max=LONGEST_WAIT_S
            )
            key = client.key
            client.retrieve(DATASETS[month.kind], request(month), str(path))
    except (requests.ConnectionError, requests.Timeout) as error:
        told = _told(error, key)
        raise InputError(where, f"must answer ({TRIES} tries)", found=told) from ConnectionError(
            told
        )
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise  # the disk's
        raise InputError(where, "must give what is asked for", found=_told(error, key)) from None


def _told(error: Exception, key: str | None) -> str:
    """What an error says, in one line, without the key."""
    text = redacted(" ".join(str(error).split()))
    return (text.replace(key, "***") if key else text)[:500]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence of what the client's libraries log and warn of: addresses, some of them signed."""
    loggers = [logging.getLogger(name) for name in ("multiurl", "ecmwf.datastores", "urllib3")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
