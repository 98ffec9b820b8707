"""The flows ``train`` and ``evaluate``: from the map store to a registered model and its scores."""

from pathlib import Path
from typing import Literal

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from pydantic import FilePath

from flows.retries import ON_IO_FAULT
from medicane import pipeline
from medicane.config import load_config
from medicane.errors import InputError


@task(**ON_IO_FAULT)
def fit(config: FilePath) -> pipeline.Trained:
    """Train, track and register; a retry resumes from the checkpoint of the last epoch."""
    settings = load_config(config)
    if settings.train.workers > 1:
        law = "must be 1 in a flow: several workers are started as 'medicane train'"
        raise InputError("train.workers", law, found=settings.train.workers)
    return pipeline.train(settings)


@task(**ON_IO_FAULT)
def score(
    config: FilePath,
    model: str | None,
    split: Literal["train", "validation", "test"],
    out: Path | None,
) -> pipeline.Evaluated:
    """Score a model and write its report."""
    return pipeline.evaluate(load_config(config), model=model, split=split, out=out)


@flow(name="evaluate")
def evaluate(
    config: FilePath,
    model: str | None = None,
    split: Literal["train", "validation", "test"] = "test",
    out: Path | None = None,
) -> pipeline.Evaluated:
    """Score a model by map and by event, with intervals, against the baselines.

    Parameters
    ----------
    config
        The configuration, a YAML file on the machine that runs the flow.
    model
        A model URI; by default the registered challenger.
    split
        The split that is scored.
    out
        Folder of the scores and the report; by default that of the store.
    """
    evaluated = score(config, model, split, out)
    create_markdown_artifact(
        key="score-table",
        markdown=f"{evaluated.table}\n\nReport: `{evaluated.report}`",
        description=f"Scores on the {evaluated.split} split",
    )
    return evaluated


@flow(name="train")
def train(config: FilePath, and_evaluate: bool = True) -> pipeline.Trained:
    """Train on the map store, register the model as challenger, and score it on the test split.

    Parameters
    ----------
    config
        The configuration, a YAML file on the machine that runs the flow.
    and_evaluate
        Score the new model at the end.
    """
    trained = fit(config)
    if trained.run_page is not None:
        create_link_artifact(key="mlflow-run", link=trained.run_page, link_text=trained.model_uri)
    else:
        create_markdown_artifact(
            key="mlflow-run",
            markdown=f"Run `{trained.run_id}`, model `{trained.model_uri}`: "
            f"`mlflow ui --backend-store-uri {trained.tracking_uri}`",
            description="The MLflow run",
        )
    if and_evaluate:
        evaluate(config, model=trained.model_uri)
    return trained
