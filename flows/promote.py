"""The flow ``promote``: a challenger trained, compared with the champion, promoted if better."""

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from pydantic import FilePath

from flows.retries import ON_IO_FAULT
from flows.train import train
from medicane import pipeline
from medicane.config import load_config


@task(**ON_IO_FAULT)
def decide(config: FilePath, model: str | None) -> pipeline.Decided:
    """Compare on the test maps and move the alias; a retry decides the same."""
    return pipeline.promote(load_config(config), model=model)


@flow(name="promote")
def promote(config: FilePath, model: str | None = None, and_train: bool = True) -> pipeline.Decided:
    """Train a challenger, compare it with the champion on the same maps, promote it if better.

    Parameters
    ----------
    config
        The configuration, a YAML file on the machine that runs the flow.
    model
        A registered model to decide on instead; then nothing is trained.
    and_train
        Train a challenger first; otherwise the one that is registered is decided on.
    """
    if model is None and and_train:
        model = train(config).model_uri
    decided = decide(config, model)
    create_markdown_artifact(
        key="promotion",
        markdown=decided.text,
        description=f"{decided.challenger} is {decided.decision}: {decided.reason}",
    )
    return decided
