"""Every day: new maps found, stored, labelled and told of; late and revised ones put right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medicane.config import Config
from medicane.pipeline.summaries import Progress, Watched

#: Gives the secret of a name; None if there is none.
Secret = Callable[[str], str | None]


def watch(
    config: Config,
    *,
    model: str,
    out: str | Path,
    start: str | None = None,
    prepare: bool = True,
    secret: Secret | None = None,
    progress: Progress | None = None,
) -> Watched:
    """Label what is new in ``data.grids``."""
    raise NotImplementedError


def status_text(done: Watched) -> str:
    """The status of a run as Markdown."""
    raise NotImplementedError
