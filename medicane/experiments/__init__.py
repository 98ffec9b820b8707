"""MLflow: runs, registered models, aliases. The only room that imports it.

Everything that a stranger needs to repeat a run is logged with it: the configuration, the seed, the
digest of the data, the label definition, the environment and the commit; and what it gave: curves,
figures, scores and the model, registered with an alias.
"""

from __future__ import annotations

import os
import sys

# Without a network the telemetry of a first call only costs time.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is not there is told after a quarter of a minute; by default it takes four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
# A bar of each download is for people: the log of a worker has no use for hundreds of them.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", str(sys.stderr.isatty()))

from medicane.experiments.registry import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS_CHAMPION,
    REGISTERED_NAME,
    ModelFile,
    Registered,
    aliased,
    describe_version,
    evaluation_folder,
    model_file,
    register_model,
    registered_model,
    rollback,
    set_champion,
    tag_version,
    versions_of,
)
from medicane.experiments.served import _load_pyfunc
from medicane.experiments.tracking import (
    FoundRun,
    Run,
    TrackingError,
    cut_run,
    default_tracking_uri,
    end_cut_runs,
    find_runs,
    git_commit,
    log_dataset,
    reopened_run,
    run_name,
    run_page,
    tracking_uri,
    training_run,
    use_tracking,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS_CHAMPION",
    "REGISTERED_NAME",
    "FoundRun",
    "ModelFile",
    "Registered",
    "Run",
    "TrackingError",
    "_load_pyfunc",
    "aliased",
    "cut_run",
    "default_tracking_uri",
    "describe_version",
    "end_cut_runs",
    "evaluation_folder",
    "find_runs",
    "git_commit",
    "log_dataset",
    "model_file",
    "register_model",
    "registered_model",
    "reopened_run",
    "rollback",
    "run_name",
    "run_page",
    "set_champion",
    "tag_version",
    "tracking_uri",
    "training_run",
    "use_tracking",
    "versions_of",
]
