"""``make demo``: the demo of `medicane.pipeline`, its steps run as flows in this process."""

import logging
import os
from pathlib import Path

from cyclopts import App

# Before Prefect is imported: no telemetry, and only what matters on the terminal.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")

from medicane import cli, pipeline
from medicane.config import load_config


def flow_steps() -> pipeline.Steps:
    """The steps of the demo, each a flow."""
    from flows.detect import detect
    from flows.prepare import prepare
    from flows.train import evaluate, train

    return pipeline.Steps(
        prepare=lambda path: prepare(path),
        train=lambda path: train(path, and_evaluate=False),
        evaluate=lambda path: evaluate(path),
        detect=lambda path, inputs, model, out: detect(
            inputs=inputs,
            model=model,
            out=str(out),
            tracking_uri=pipeline.tracking_uri(load_config(path)),
        ),
    )


def main(*, out: Path = Path("demo"), seed: int = 0) -> None:
    """Run the demo through the flows.

    Parameters
    ----------
    out
        A folder of its own; one of an earlier demo is replaced.
    seed
        Seed of the sea and of the training.
    """
    logging.getLogger("prefect").setLevel(logging.WARNING)
    cli.run_demo(out, seed=seed, steps=flow_steps())


if __name__ == "__main__":
    cli.run(App(name="demo", default_command=main))
