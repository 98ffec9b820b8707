"""Files and stores behind a URI: any of fsspec's, tried again with back-off, whole or an error.

A connection that breaks, a server that fails and a body that is cut are met by another try, each
after twice the wait of the one before; the last one ends in one error that names the URI. What is
shorter than it should be is never taken for data. Users, passwords and queries of a URI, and what
`StorageOptions` hold, enter no message.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib.util
import io
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AsyncFileSystem, get_loop, sync
from fsspec.implementations.cached import WholeFileCacheFileSystem

from medicane.errors import InputError
from medicane.remote.attempts import again, check_length

if TYPE_CHECKING:
    from zarr.storage import FsspecStore

#: Options of fsspec's file systems by protocol, as in its own configuration files:
#: ``{"s3": {"anon": True, "endpoint_url": "http://127.0.0.1:9000"}}``.
StorageOptions = Mapping[str, Mapping[str, Any]]

#: A connection over which nothing has come for so long is given up; one that is slow is not.
SILENCE_S = 60

#: What file systems of fsspec call a file's version, digest or last change.
_STAMPS = {
    *("ETag", "etag", "md5Hash", "crc32c", "generation", "Content-MD5", "content_md5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified"),
}

#: NetCDF files are read in blocks of so many bytes, of which so many are kept.
BLOCK_BYTES = 4 * 2**20
KEPT_BLOCKS = 8


def is_remote(uri: object) -> bool:
    """Whether a source is a URI, of one link or a chain of them, and no path of this machine."""
    text = str(uri)
    return ("://" in text or "::" in text) and not text.startswith("file://")


def expand(uri: str, options: StorageOptions | None = None) -> list[str]:
    """Every URI that one with wildcards stands for, in order; ``*`` is the one wildcard.

    Raises
    ------
    InputError
        If nothing matches, the listing cannot be read, or the protocol is not known.
    """
    if "*" not in uri:
        return [uri]
    fs, path = _connected(uri, options)
    # Without this, a folder over HTTP that cannot be listed counts as an empty one.
    more = {"on_error": "raise"} if "http" in fs.protocol else {}
    try:
        found = sync(get_loop(), again, lambda: _within(fs, "glob", path, **more), "")
    except OSError as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(uri, "its folder must be one that can be listed", found=found) from error
    if not found:
        raise InputError(uri, "the glob must match at least one file", found="none")
    return [uri.replace(path, match, 1) for match in sorted(found)]


class Remote(AsyncFileSystem):
    """One place behind a URI, a file or a folder; paths are relative to it, ``""`` is itself.

    Any of its operations raises, after the last try or where none would help, a plain `OSError`
    (`FileNotFoundError`, `PermissionError`, `ConnectionError` …) whose text holds no secret.

    Parameters
    ----------
    uri
        Any URI that fsspec understands; a chain (``simplecache::s3://…``) too.
    options
        By protocol; they go before fsspec's own configuration and environment.

    Raises
    ------
    InputError
        If the protocol is not known, or its library is not installed.
    """

    cachable = False
    protocol = "remote"

    def __init__(self, uri: str, options: StorageOptions | None = None) -> None:
        super().__init__(asynchronous=True)
        self.uri = uri
        self._fs, root = _connected(uri, options)
        self._root, mark, query = (
            root.partition("?") if "http" in self._fs.protocol else (root, "", "")
        )
        self._query = mark + query
        self._sound: set[str] = set()

    def read(self, path: str = "", *, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, all of them or those from `start` to before `end`."""
        return bytes(sync(get_loop(), self._cat_file, path, start=start, end=end))

    def write(self, path: str, data: bytes) -> None:
        """Put a file in its place at once."""
        sync(get_loop(), self._pipe_file, path, data)

    def start(self, length: int = 64) -> bytes:
        """The first bytes of the place if it is a file, fewer where it is shorter.

        Raises
        ------
        OSError
            `FileNotFoundError` where there is no file: a folder has no bytes of its own.
        """
        try:
            return self.read(start=0, end=length)
        except OSError as error:
            # How a server says that a file is empty: its range from 0 on is none.
            if any(word in str(error) for word in ("416", "not satisfiable")):
                return b""
            raise

    def is_zarr(self) -> bool:
        """Whether the place is a Zarr store: whether its own document can be read there."""
        for name in ("zarr.json", ".zmetadata", ".zgroup"):
            # Without the right to list, a store answers 403 for what is not there.
            with suppress(
                FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError
            ):
                self.read(name)
                return True
        return False

    def zarr_store(self, *, read_only: bool = True) -> FsspecStore:
        """The place as a store for zarr and xarray."""
        from zarr.storage import FsspecStore

        return FsspecStore(self, path="", read_only=read_only)

    def file(self) -> RangeFile | Path:
        """The place as a file of which only the parts that are asked for are read.

        Where the server does not tell its length, a local copy.
        """
        size = sync(get_loop(), self._info, "").get("size")
        return self.local_copy() if size is None else RangeFile(self, int(size))

    def local_copy(self) -> Path:
        """A whole copy in a temporary folder, removed when the process ends.

        A second call makes another one only where the server says that the file has changed.
        """
        from dask.base import tokenize

        about = sync(get_loop(), self._info, "")
        path = Path(_copies().name) / tokenize(self.uri, {k: str(v) for k, v in about.items()})
        if not path.exists():
            part = path.with_suffix(".part")
            try:
                sync(get_loop(), self._get_file, "", str(part))
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        return path

    def stamp(self) -> str | None:
        """What changes with the content of the place: its length, and what the server says of it.

        None for a folder, a Zarr store, or a server that tells no more than the length.
        """
        about = sync(get_loop(), self._info, "")
        said = {key: str(value) for key, value in about.items() if key in _STAMPS}
        if about.get("type") == "directory" or about.get("size") is None or not said:
            return None
        return " ".join([str(about["size"]), *(said[key] for key in sorted(said))])

    # What zarr and the methods above call, on whichever event loop --------------------------------

    async def _cat_file(
        self,
        path: str,
        start: int | None = None,
        end: int | None = None,
        *,
        length: int | None = None,
        **kwargs: Any,
    ) -> bytes:
        """The bytes of a file; `length` of them, if that is known."""

        async def once() -> bytes:
            data = bytes(await self._do("cat_file", path, start=start, end=end))
            if start is not None and end is not None and len(data) > end - start >= 0:
                data = data[start:end]  # a server that knows no ranges sends all
            if length is not None:
                check_length(len(data), length)
            return data

        return await again(once, path)

    async def _get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        async def once() -> None:
            size = (await self._do("info", rpath)).get("size")
            await self._do("get_file", rpath, lpath)
            if size is not None:
                check_length(os.path.getsize(lpath), int(size))

        await again(once, rpath)

    async def _pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        await again(lambda: self._do("pipe_file", path, value), path)

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        found = await again(lambda: self._do("info", path), path)
        return {**found, "name": "/" + path.strip("/")}

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        found = await again(lambda: self._do("ls", path, detail=True), path)
        entries = [
            {**entry, "name": "/" + entry["name"].rstrip("/").removeprefix(self._root).lstrip("/")}
            for entry in found
        ]
        return entries if detail else [entry["name"] for entry in entries]

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            await self._info(path)
        except FileNotFoundError:
            return False
        return True

    async def _do(self, operation: str, path: str, *args: Any, **kwargs: Any) -> Any:
        full = self._full(path)
        if path not in self._sound:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(_one_thread(), self._drop_cut_copy, full)
            self._sound.add(path)
        try:
            return await _within(self._fs, operation, full, *args, **kwargs)
        except BaseException:
            self._sound.discard(path)
            raise

    def _drop_cut_copy(self, full: str) -> None:
        """Remove what simplecache or filecache holds of a file whose copying was cut.

        They copy under the final name, and take what is there for the file.
        """
        fs = self._fs
        if issubclass(type(fs), WholeFileCacheFileSystem):
            held = Path(fs.storage[-1]) / fs._mapper(full)
            if held.exists() and held.stat().st_size != fs.info(full)["size"]:
                held.unlink()

    def _full(self, path: str) -> str:
        inner = path.strip("/")
        return (f"{self._root.rstrip('/')}/{inner}" if inner else self._root) + self._query


class RangeFile(io.RawIOBase):
    """A remote file as Python and HDF5 read files: by ranges, each one whole or an error."""

    mode = "rb"

    def __init__(self, place: Remote, size: int) -> None:
        from fsspec.caching import BlockCache

        super().__init__()
        self._place, self._size, self._at = place, size, 0
        self._cache = BlockCache(BLOCK_BYTES, self._fetch, size, maxblocks=KEPT_BLOCKS)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._place, self._size)

    def _fetch(self, start: int, end: int) -> bytes:
        end = min(end, self._size)  # the last block is asked for as if it were a full one
        read = self._place._cat_file
        return bytes(sync(get_loop(), read, "", start, end, length=end - start))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer).cast("B")
        data = self._cache._fetch(self._at, min(self._at + len(wanted), self._size))
        wanted[: len(data)] = data
        self._at += len(data)
        return len(data)


def needs(package: str, uri: object, *, extra: str = "cloud") -> None:
    """Refuse what a package of an extra is needed for and is not installed.

    Raises
    ------
    InputError
        Naming the extra.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(uri, f"needs {package}: pip install 'medicane[{extra}]'")


# --------------------------------------------------------------------------------------------------


@functools.cache
def _one_thread() -> ThreadPoolExecutor:
    """Where file systems without an event loop work, caches among them: one thing at a time.

    In the threads of the event loop they would wait for what needs those threads itself.
    """
    return ThreadPoolExecutor(1)


@functools.cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    """The folder of local copies; it goes when the process does."""
    return tempfile.TemporaryDirectory(prefix="medicane-")


def _connected(uri: str, options: StorageOptions | None) -> tuple[Any, str]:
    """The file system behind a URI, and the path on it; nothing is asked of it yet."""
    from fsspec.core import url_to_fs

    protocols = {link.partition("://")[0] for link in uri.split("::")}
    try:
        fs, path = url_to_fs(uri, **{p: _arguments(p, options) for p in protocols})
    except ImportError as error:
        raise InputError(
            uri,
            "needs a library that is not installed; those of https, s3 and gs come with "
            "pip install 'medicane[cloud]'",
            found=error,
        ) from None
    except Exception as error:
        raise InputError(uri, "must be a URI that fsspec understands", found=error) from None
    fs.invalidate_cache()  # listings are kept by the process; a daily run asks anew
    return fs, path


def _arguments(protocol: str, options: StorageOptions | None) -> dict[str, Any]:
    """Of a file system: ours, before them fsspec's configuration, before that the options given."""
    from fsspec.config import conf

    ours: dict[str, Any] = {}
    if protocol in ("http", "https") and importlib.util.find_spec("aiohttp"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=SILENCE_S / 4, sock_read=SILENCE_S)
        # trust_env: proxies of the environment, and the users and passwords of ~/.netrc.
        ours = {
            "client_kwargs": {"trust_env": True, "timeout": timeout},
            "headers": {"Accept-Encoding": "identity"},  # so that a range is one of the file
        }
    elif protocol in ("s3", "s3a"):
        # botocore's own tries would multiply with those of `_again`.
        ours = {"config_kwargs": {"retries": {"total_max_attempts": 1, "mode": "standard"}}}
    elif protocol in ("gs", "gcs"):
        # Otherwise each operation first asks, over gRPC, of what kind the bucket is; without an
        # account nobody answers, and it waits for a minute where gRPC does not pass.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return (
        ours | dict(conf.get(protocol, {})) | copy.deepcopy(dict((options or {}).get(protocol, {})))
    )


async def _within(fs: Any, operation: str, *args: Any, **kwargs: Any) -> Any:
    """An operation of a file system, on the event loop that its connections belong to."""
    # Of its class: a cache answers for itself with what the file system behind it is.
    if not type(fs).async_impl:
        call = functools.partial(getattr(fs, operation), *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(_one_thread(), call)
    call = getattr(fs, f"_{operation}")(*args, **kwargs)
    if asyncio.get_running_loop() is fs.loop:
        return await call
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, fs.loop))
