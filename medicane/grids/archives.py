"""ZIP archives, as the Climate Data Store sends them where one request mixes step types."""

from __future__ import annotations

import atexit
import functools
import lzma
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from medicane.errors import InputError
from medicane.grids.lazy import short


def unpacked(source: str, *, told: str | None = None) -> list[tuple[str, str]]:
    """The files of a ZIP, unpacked to a temporary folder that goes when the process ends.

    Parameters
    ----------
    source
        A ZIP that holds NetCDF or GRIB files and nothing else.
    told
        What it is called, if it is not by its path.

    Returns
    -------
    list of (str, str)
        What to call each file (archive and member), and its path on disk.

    Raises
    ------
    InputError
        If the archive is broken, empty, encrypted, holds something else or a path that leads out of
        it, or is larger than the disk has room for.
    """
    stat = os.stat(source)
    path = os.path.abspath(source)
    return list(_unpacked(path, told or source, stat.st_mtime_ns, stat.st_size))


#: What reading a broken archive may raise.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,
    NotImplementedError,
    EOFError,
    RuntimeError,
)


@functools.lru_cache(maxsize=256)
def _unpacked(path: str, source: str, stamp: int, size: int) -> tuple[tuple[str, str], ...]:
    """Once for each state of the archive: the dask blocks of a file that stays keep their names."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check(members, source)
            folder = Path(_temporary_folder())
            needed, free = sum(m.file_size for m in members), shutil.disk_usage(folder).free
            if needed > free:
                law = f"needs {needed / 1e9:.1f} GB of room in {folder} to be unpacked"
                raise InputError(source, law, found=f"{free / 1e9:.1f} GB")
            place = Path(tempfile.mkdtemp(dir=folder))
            found = []
            for number, member in enumerate(members):
                # A name of our own: that of a member is not to be trusted with a path.
                target = place / f"{number}{PurePosixPath(member.filename).suffix}"
                with archive.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                found.append((f"{source}: {member.filename}", str(target)))
            return tuple(found)
    except _BROKEN as error:
        raise InputError(source, "must be a whole ZIP archive", found=short(error)) from error


def _check(members: list[zipfile.ZipInfo], source: str) -> None:
    if not members:
        raise InputError(source, "must hold NetCDF or GRIB files", found="an empty ZIP archive")
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in member.filename:
            raise InputError(
                source, "no member may lead out of the archive", found=repr(member.filename)
            )
        if member.flag_bits & 1:
            raise InputError(
                source, "must not be encrypted", found=f"{member.filename} with a password"
            )
        if name.suffix.lower() not in (".nc", ".nc4", ".grib", ".grb", ".grib2", ".grb2"):
            raise InputError(
                source, "must hold NetCDF or GRIB files only: unpack it", found=member.filename
            )


@functools.cache
def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="medicane-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
