"""The flow ``detect``: new grids in, probabilities and events out."""

from pathlib import Path
from typing import Annotated, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.retries import ON_IO_FAULT
from medicane import pipeline


@task(**ON_IO_FAULT)
def label_new_maps(
    inputs: list[str],
    model: str,
    out: Path,
    mode: Literal["causal", "fused"],
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
        threshold=threshold,
        allow_short=allow_short,
        tracking=tracking_uri,
    )


@flow(name="detect")
def detect(
    inputs: Annotated[list[str], Field(min_length=1)],
    model: str = "models:/medicane@champion",
    out: Path = Path("detections"),
    mode: Literal["causal", "fused"] = "causal",
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None,
    allow_short: bool = False,
    tracking_uri: str | None = None,
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
    threshold
        Probability from which a map is a detection; by default the model's own.
    allow_short
        Label fewer maps than one sequence with the shorter history they have.
    tracking_uri
        Where the model is registered; by default what the environment says.
    """
    detected = label_new_maps(inputs, model, out, mode, threshold, allow_short, tracking_uri)
    create_markdown_artifact(
        key="probability-strip",
        markdown=pipeline.probability_strip(Path(detected.detections)),
        description=f"{detected.n_new} new maps, {detected.n_events} events in all",
    )
    return detected
