"""The command ``medicane``: arguments in, one step of the pipeline, a short account out. No logic.

Heavy libraries are imported by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

from medicane.cli import governance as _governance  # noqa: F401  its commands register themselves
from medicane.cli import inspection as _inspection  # noqa: F401
from medicane.cli import supply as _supply  # noqa: F401
from medicane.cli.terminal import app, run
from medicane.cli.way import run_demo

__all__ = ["app", "main", "run", "run_demo"]


def main() -> None:
    """The command ``medicane``."""
    run(app)
