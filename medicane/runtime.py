"""What runs a detector's encoder: OpenVINO where the extra ``fast`` is installed, else Keras.

An encoder is exported from the loaded model at first use and kept in a cache, under the digest of
the model file and the version of OpenVINO; an entry that does not fit both, or is not byte for byte
what was written, is never read. The head stays with Keras: it costs a hundredth of the encoder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medicane import __version__
from medicane.config import Precision
from medicane.errors import InputError

if TYPE_CHECKING:
    import keras

LOG = logging.getLogger(__name__)

Maps = NDArray[np.float32]

#: Maps (or sequences of maps) that OpenVINO is given at a time, on each of its streams.
BATCH = 16

#: The files of an encoder in the cache, and the one that says what they are.
_GRAPH, _WEIGHTS, _ENTRY, _CHECK = "encoder.xml", "encoder.bin", "entry.json", "check.json"

#: What runs these precisions when the encoder is compiled. Quantised layers say so themselves.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


class Encoder:
    """An encoder on OpenVINO: a callable as the Keras one, (n, …, H, W, C) → (n, …, F).

    Grids of any size; it is compiled anew when the size changes.

    Parameters
    ----------
    graph
        The exported ``.xml``, its weights beside it.
    precision
        Of the arithmetic.
    one_by_one
        Maps come one at a time: all cores work on one, instead of each on a batch of its own.
    """

    def __init__(self, graph: Path, *, precision: Precision, one_by_one: bool = False) -> None:
        self.precision = precision
        self._network = _openvino().Core().read_model(graph)
        over_time = self._network.input(0).partial_shape.rank.get_length() == 5
        # A sequence of maps is one item, so that there may be one alone.
        hint = "LATENCY" if one_by_one or over_time else "THROUGHPUT"
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": hint,
            **_as_many_threads_as_told(),
        }
        self._usual = None if over_time else 1 if one_by_one else BATCH
        self._cells: tuple[int, ...] = ()
        self._queues: dict[int, Any] = {}

    def __call__(self, maps: Maps) -> Maps:
        """Features of maps (n, H, W, C), or of sequences of maps (n, T, H, W, C), float32."""
        if self._cells != maps.shape[-3:]:
            self._cells, self._queues = maps.shape[-3:], {}
        maps = np.ascontiguousarray(maps, dtype=np.float32)
        parts: dict[int, Maps] = {}

        def keep(request: Any, start: int) -> None:
            # The next request on the same stream writes over these.
            parts[start] = request.get_output_tensor(0).data.copy()

        cuts = range(0, len(maps), BATCH)
        queues = {start: self._queue_for(maps[start : start + BATCH].shape) for start in cuts}
        for queue in self._queues.values():  # none may be at work when it is told
            queue.set_callback(keep)
        for start, queue in queues.items():
            queue.start_async(maps[start : start + BATCH], start, share_inputs=True)
        for queue in self._queues.values():
            queue.wait_all()
        return np.concatenate([parts[start] for start in sorted(parts)])

    def _queue_for(self, shape: tuple[int, ...]) -> Any:
        """Requests for batches of this shape, compiled at the first one.

        The network of batches of the usual size knows it, and is a tenth faster for that; another
        one, with the same values, takes what is left at an end.
        """
        size = shape[0] if shape[0] == self._usual else -1
        if size not in self._queues:
            openvino = _openvino()
            network = self._network.clone()
            network.reshape([size, *[-1] * (len(shape) - 4), *shape[-3:]])
            self._queues[size] = openvino.AsyncInferQueue(
                openvino.Core().compile_model(network, "CPU", self._settings)
            )
        return self._queues[size]


def open_encoder(
    encoder: keras.Model,
    *,
    digest: str,
    precision: Precision = "float32",
    one_by_one: bool = False,
) -> Encoder | None:
    """The encoder of a detector on OpenVINO; a line of the log says what runs it.

    Parameters
    ----------
    encoder
        ``medicane.model.encoder_of(model)``; exported if the cache has none of this digest.
    digest
        Of the model file.
    precision
        ``float32``, ``bfloat16`` or ``int8``; the last one is made by `quantised` and must have
        passed its check, see `verdict_of`.
    one_by_one
        For maps that come one at a time, see `Encoder`.

    Returns
    -------
    Encoder or None
        None where Keras must run it: the extra is not installed, or OpenVINO does not know a layer
        of the encoder.

    Raises
    ------
    InputError
        If another precision than float32 is asked for, and there is none.
    """
    needed = f"the precision {precision} needs the extra fast: pip install 'medicane[fast]'"
    try:
        version = _openvino().__version__
    except ImportError as error:
        if precision != "float32":
            raise InputError("--precision", needed, found=str(error)) from None
        LOG.info("the encoder runs on Keras: the extra fast is not installed (%s)", error)
        return None
    if precision == "int8":
        verdict = verdict_of(digest, precision)
        if verdict is None or not verdict["passed"]:
            raise InputError(
                "--precision",
                "int8 needs a check that it leaves the scores of this model as they are: "
                "medicane check-precision --config CONFIG --model MODEL",
                found="no check of this model" if verdict is None else "a check that failed",
            )
        entry = _entry(digest, quantised=True)
    else:
        entry = _entry(digest, quantised=False)
        if not _is_whole(entry, digest):
            try:
                with _making(entry, digest) as folder:
                    _export(encoder, folder / _GRAPH)
            except _NotConvertedError as error:
                if precision != "float32":
                    law = f"the precision {precision} needs an encoder that OpenVINO can run"
                    raise InputError("--precision", law, found=str(error)) from None
                LOG.warning("the encoder runs on Keras: OpenVINO cannot convert it (%s)", error)
                return None
    if precision == "bfloat16" and not has_bfloat16():
        LOG.warning("this processor has no bfloat16: the encoder runs in float32, as exact as ever")
    LOG.info("the encoder runs on OpenVINO %s in %s", version, precision)
    return Encoder(entry / _GRAPH, precision=precision, one_by_one=one_by_one)


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16; OpenVINO takes float32 where it does not."""
    return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def quantised(encoder: keras.Model, *, digest: str, maps: Iterable[Maps]) -> Encoder:
    """Make the int8 form of an encoder: quantised after training, calibrated on training maps.

    Parameters
    ----------
    encoder, digest
        As for `open_encoder`.
    maps
        Batches as the encoder takes them, (n, H, W, C) or (n, T, H, W, C), one size of grid.

    Returns
    -------
    Encoder
        What the cache now holds; a verdict of an earlier form is gone with it.

    Raises
    ------
    InputError
        If the extra ``fast`` is not installed, or OpenVINO cannot run the encoder.
    """
    if open_encoder(encoder, digest=digest) is None:
        law = "int8 needs the extra fast and an encoder that OpenVINO can run"
        raise InputError("--precision", law, found="an encoder that runs on Keras")
    batches = [np.ascontiguousarray(batch, dtype=np.float32) for batch in maps]
    network = _openvino().Core().read_model(_entry(digest, quantised=False) / _GRAPH)
    with _quietly(), contextlib.redirect_stdout(io.StringIO()):  # it draws bars
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        nncf.set_log_level(logging.ERROR)
        # Eight bits of one scale cannot hold channels of pascals beside channels of metres: the
        # export puts their normalisation into the weights of the first convolution. Attention
        # costs next to nothing, and weighs what is left; storms are rare: no range leaves them out.
        first = next(o for o in network.get_ordered_ops() if o.get_type_name() == "Convolution")
        network = nncf.quantize(
            network,
            nncf.Dataset(batches),
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(
                names=[first.get_friendly_name()], types=["MatMul", "Multiply"], validate=False
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )
    entry = _entry(digest, quantised=True)
    shutil.rmtree(entry, ignore_errors=True)
    with _making(entry, digest) as folder:
        _openvino().save_model(network, folder / _GRAPH, compress_to_fp16=False)
    return Encoder(entry / _GRAPH, precision="int8")


def record_verdict(digest: str, precision: Precision, verdict: dict[str, Any]) -> Path:
    """Keep the verdict of a check beside the encoder that was checked.

    Parameters
    ----------
    verdict
        JSON values, ``passed`` among them.

    Returns
    -------
    Path
        The JSON file.
    """
    entry = _entry(digest, quantised=precision == "int8")
    path = entry / f"{precision}-{_CHECK}"
    told = {**verdict, "digest": digest, "precision": precision, "encoder": _files_of(entry)}
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(json.dumps(told, indent=2), encoding="utf-8")
    os.replace(temporary, path)
    return path


def verdict_of(digest: str, precision: Precision) -> dict[str, Any] | None:
    """The verdict of the check of a model in a precision; None if this encoder has none."""
    entry = _entry(digest, quantised=precision == "int8")
    told = _read_json(entry / f"{precision}-{_CHECK}")
    if told is None or not _is_whole(entry, digest):
        return None
    fits = (told.get("digest"), told.get("precision")) == (digest, precision)
    return told if fits and told.get("encoder") == _files_of(entry) else None


def cache_folder() -> Path:
    """Where exported encoders are kept: ``MEDICANE_CACHE``, by default ``~/.cache/medicane``."""
    told = os.environ.get("MEDICANE_CACHE")
    return Path(told) if told else Path.home() / ".cache" / "medicane"


# The cache ---------------------------------------------------------------------------------------


def _entry(digest: str, *, quantised: bool) -> Path:
    kind = "int8" if quantised else "float"
    version = _openvino().__version__.split("-")[0]
    return cache_folder() / "encoders" / f"{digest.rpartition(':')[2]}-{kind}-openvino-{version}"


def _is_whole(entry: Path, digest: str) -> bool:
    """Whether an entry is of this model and this OpenVINO, byte for byte as it was written."""
    told = _read_json(entry / _ENTRY)
    if told is None:
        if entry.exists():
            LOG.warning("%s: not a whole entry of the cache: it is made again", entry)
        return False
    if told != _told_of(entry, digest):
        LOG.warning("%s: not what was written there: it is made again", entry)
        return False
    return True


@contextlib.contextmanager
def _making(entry: Path, digest: str) -> Iterator[Path]:
    """A folder to write an entry in; it takes its name when it is whole."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".making-") as scratch:
        folder = Path(scratch) / "entry"
        folder.mkdir()
        yield folder
        told = json.dumps(_told_of(folder, digest))
        (folder / _ENTRY).write_text(told, encoding="utf-8")
        if entry.exists() and not _is_whole(entry, digest):
            shutil.rmtree(entry)
        # Another process may have made it meanwhile, which is as good.
        with contextlib.suppress(OSError):
            folder.rename(entry)


def _told_of(entry: Path, digest: str) -> dict[str, Any]:
    return {
        "digest": digest,
        "openvino": _openvino().__version__,
        "software": __version__,
        "files": _files_of(entry),
    }


def _files_of(entry: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((entry / name).read_bytes()).hexdigest()
        for name in (_GRAPH, _WEIGHTS)
        if (entry / name).is_file()
    }


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


# OpenVINO ----------------------------------------------------------------------------------------


class _NotConvertedError(Exception):
    """OpenVINO does not know a part of the network."""


def _openvino() -> Any:
    """The one place that imports it."""
    import openvino

    return openvino


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """While OpenVINO and NNCF convert: no telemetry, and the log as it was afterwards.

    They tell their makers of each conversion, unless they believe that they run in a CI. A
    conversion leaves the root logger, or its handlers, deaf to anything but errors.
    """
    before, root = os.environ.get("CI"), logging.getLogger()
    level, filters = root.level, [*root.filters]
    handlers = {handler: handler.level for handler in root.handlers}
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, list(handlers)
        for handler, was in handlers.items():
            handler.setLevel(was)
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def _export(encoder: keras.Model, graph: Path) -> None:
    try:
        with _quietly():
            encoder.export(str(graph), format="openvino", verbose=False)
    except Exception as error:  # what its converter raises for a layer is not one type
        first = next((line for line in str(error).splitlines() if "rule" in line), "")
        raise _NotConvertedError(first.strip("- ") or type(error).__name__) from error


def _as_many_threads_as_told() -> dict[str, int]:
    """As many threads as OMP_NUM_THREADS says, which dask sets on its workers."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return {"INFERENCE_NUM_THREADS": int(told)} if told.isdecimal() and int(told) else {}
