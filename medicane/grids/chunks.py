"""Zarr stores whose maps must be there: an absent chunk would be read as its fill value."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import WrapperStore

from medicane import names
from medicane.errors import InputError
from medicane.grids.lazy import TIME_DIMENSIONS

#: Land masks are of one value over the open sea, and need no chunk there.
_STATIC = frozenset({"lsm", *names.VARIABLES["lsm"].aliases})
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


class WholeStore(WrapperStore[Store]):
    """A store that refuses absent chunks of the arrays `required`, and cut ones of `blosc`.

    To Zarr an absent chunk is one of the fill value throughout. Of packed maps that is a value like
    any other: a chunk that was lost on its way would be a calm map. And Blosc inflates a chunk that
    was cut short without a word, from whatever lies behind it in memory.
    """

    def __init__(
        self, store: Store, required: set[str] | None = None, blosc: set[str] | None = None
    ) -> None:
        super().__init__(store)
        self.required = set() if required is None else required
        self.blosc = set() if blosc is None else blosc

    def _with_store(self, store: Store) -> WholeStore:
        return type(self)(store, self.required, self.blosc)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """As of the store within."""
        found = await self._store.get(key, prototype, byte_range)
        name = key.split("/")[0]
        if name not in self.required | self.blosc or key.endswith(_METADATA):
            return found
        if found is None and name in self.required:
            raise InputError(key, "the chunk must be there")
        if found is not None and name in self.blosc and byte_range is None:
            length = int.from_bytes(found[12:16].to_bytes(), "little")
            if len(found) != length:
                law = f"the chunk must have the {length} bytes that it says"
                raise InputError(key, law, found=len(found))
        return found

    def require_maps(self, ds: xr.Dataset) -> None:
        """Require whole chunks of `ds`, opened from here; of maps all, unless absent is missing."""
        group = zarr.open_group(self, mode="r")
        for name, array in ds.data_vars.items():
            compressors = group[str(name)].compressors  # type: ignore[union-attr]
            if compressors and "Blosc" in type(compressors[-1]).__name__:
                self.blosc.add(str(name))
            if set(TIME_DIMENSIONS) & set(array.dims) and str(name).lower() not in _STATIC:
                stored: Any = group[str(name)]
                absent, missing = stored.fill_value, array.encoding.get("_FillValue")
                if absent is None or not (_is_nan(absent) or absent == missing):
                    self.required.add(str(name))


def _is_nan(value: Any) -> bool:
    return bool(np.asarray(value).dtype.kind == "f" and np.isnan(value))
