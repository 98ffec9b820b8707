"""The flow ``detect``: new grids in, probabilities and events out, here or on a dask cluster."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BeforeValidator, Field

from flows.retries import ON_IO_FAULT
from medicane import pipeline


@task(**ON_IO_FAULT)
def label_new_maps(
    inputs: list[str],
    model: str,
    out: str,
    mode: Literal["causal", "fused"],
    precision: Literal["float32", "bfloat16", "int8"],
    threshold: float | None,
    allow_short: bool,
    tracking_uri: str | None,
) -> pipeline.Detected:
    """Label what is newer than the last detection; a retry adds nothing twice."""
    return pipeline.detect(
        inputs,
        model=model,
        out=out,
        mode=mode,
        precision=precision,
        threshold=threshold,
        allow_short=allow_short,
        tracking=tracking_uri,
    )


@task(**ON_IO_FAULT, cache_policy=NO_CACHE)
def label_month(work: Callable[[], Any]) -> Any:
    """What one worker does of an archive: a block of a month of hourly maps, a few numbers each."""
    return work()


@flow(name="detect-on-dask")
def label_archive(
    inputs: list[str],
    model: str,
    out: str,
    mode: Literal["causal", "fused"],
    precision: Literal["float32", "bfloat16", "int8"],
    threshold: float | None,
    allow_short: bool,
    tracking_uri: str | None,
    scheduler: str,
) -> pipeline.Detected:
    """Each block of time a task on a worker of the cluster, and one series of all of them."""

    def each(function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        handed_out = [
            label_month.with_options(name=function.__name__).submit(partial(function, *one))
            for one in zip(*arguments, strict=True)
        ]
        for future in handed_out:
            yield future.result()

    return pipeline.detect(
        inputs,
        model=model,
        out=out,
        mode=mode,
        precision=precision,
        threshold=threshold,
        allow_short=allow_short,
        tracking=tracking_uri,
        scheduler=scheduler,
        each=each,
    )


@flow(name="detect")
def detect(
    inputs: Annotated[list[str], Field(min_length=1)],
    model: str = "models:/medicane@champion",
    out: Annotated[str, BeforeValidator(str)] = "detections",
    mode: Literal["causal", "fused"] = "causal",
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None,
    allow_short: bool = False,
    tracking_uri: str | None = None,
    scheduler: str | None = None,
) -> pipeline.Detected:
    """Label new grids; a later run adds only the new times.

    Parameters
    ----------
    inputs
        Files, globs or stores, merged on exactly equal coordinates.
    model
        A model URI.
    out
        Folder of the detections.
    mode
        causal, or fused for archives.
    precision
        Of the encoder; int8 once `medicane check-precision` has passed.
    threshold
        Probability from which a map is a detection; by default the model's own.
    allow_short
        Label fewer maps than one sequence with the shorter history they have.
    tracking_uri
        Where the model is registered; by default what the environment says.
    scheduler
        Address of a dask scheduler whose workers label an archive, a task for each month or so of
        maps; by default it is one task here.
    """
    wanted = (inputs, model, out, mode, precision, threshold, allow_short, tracking_uri)
    if scheduler is None:
        detected = label_new_maps(*wanted)
    else:
        from prefect_dask import DaskTaskRunner

        runner: Any = DaskTaskRunner(address=scheduler)
        detected = label_archive.with_options(task_runner=runner)(*wanted, scheduler)
    create_markdown_artifact(
        key="probability-strip",
        markdown=pipeline.probability_strip(detected.detections),
        description=f"{detected.n_new} new maps, {detected.n_events} events in all",
    )
    return detected
