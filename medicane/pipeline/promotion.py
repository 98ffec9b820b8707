"""Champion and challenger: the better one bears the alias, the reason is kept; and the way back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medicane import names
from medicane.config import Config
from medicane.errors import InputError
from medicane.pipeline.evaluation import MODEL_NAME, forecast_split
from medicane.pipeline.summaries import Decided, RolledBack

if TYPE_CHECKING:
    import keras
    import xarray as xr

    from medicane.experiments import Registered

SCHEMA_VERSION = 1

#: Facts of two detectors that must agree before the two can take each other's place.
_MUST_AGREE = ("channels", "formulas", "step_hours", "degrees", "domain")

#: Scores by their names in a sentence.
_SPOKEN = {"csi": "CSI", "auc_pr": "AUC-PR", "pod": "POD", "brier_skill": "Brier skill"}


def promote(config: Config, *, model: str | None = None, seed: int = 0) -> Decided:
    """Make a challenger champion where it is better on the test maps beyond chance.

    Both are run on the current store's test split, each with its own threshold, and scored over the
    same resamples. The challenger is promoted when the lower end of the 95 % interval of the
    difference in ``promotion.score`` lies above ``promotion.margin``, or when there is no champion.

    The decision goes to the challenger's run (``promotion/decision.json``, ``decision.md``, tags
    ``promotion`` and ``promotion_reason``, also on the model version); the champion before keeps
    the alias ``previous_champion``.

    Parameters
    ----------
    config
        ``data``, ``splits``, ``promotion`` and ``tracking`` are read.
    model
        URI of a registered model; by default the challenger.
    seed
        Of the block bootstrap.

    Raises
    ------
    InputError
        If the model is not registered, is the champion already, knows other channels or another
        label definition than the champion or the store, or the test split holds no medicane.
    """
    from medicane import evaluate as verification
    from medicane import experiments, report
    from medicane.store import open_store

    tracking = experiments.tracking_uri(config)
    uri = model or f"models:/{experiments.REGISTERED_NAME}@{experiments.CHALLENGER}"
    challenger = experiments.registered_model(uri, tracking=tracking)
    champion = experiments.aliased(experiments.CHAMPION)
    if champion is not None and champion.version == challenger.version:
        law = "must be another model than the champion"
        raise InputError(uri, law, found=f"version {champion.version} is both")
    store = open_store(config.data.store)
    table, notes = _contest(config, store, challenger, champion, seed=seed)
    promoted, reason = _verdict(config, table, champion)
    text = _told(config, challenger, champion, promoted, reason, notes, table)
    decision = {
        "schema_version": SCHEMA_VERSION,
        "decision": "promoted" if promoted else "kept",
        "reason": reason,
        "decided": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "score": config.promotion.score,
        "margin": config.promotion.margin,
        "difference": _difference(config, table),
        "challenger": {**challenger.__dict__},
        "champion": None if champion is None else {**champion.__dict__},
        "data_digest": str(store.attrs.get("content_digest", "")),
        "notes": notes,
        "comparison": table,
    }
    run = experiments.reopened_run(challenger.run_id)
    with report.figure_folder() as scratch:
        verification.write_scores(scratch / "decision.json", decision)
        (scratch / "decision.md").write_text(text, encoding="utf-8")
        run.log_file(scratch, folder="promotion")
    if promoted:
        experiments.set_champion(challenger)
    # The tags come last: they say what has been done.
    experiments.tag_version(
        challenger, {"promotion": str(decision["decision"]), "promotion_reason": reason}
    )
    return Decided(
        decision="promoted" if promoted else "kept",
        reason=reason,
        challenger=challenger.uri,
        champion=None if champion is None else champion.uri,
        run_id=challenger.run_id,
        tracking_uri=tracking,
        text=text,
    )


def rollback(*, tracking: str | None = None) -> RolledBack:
    """Give the alias ``champion`` back to the champion before; both versions and runs are tagged.

    Raises
    ------
    InputError
        If there is no champion, or none before it.
    """
    from medicane import experiments

    now, before = experiments.rollback(tracking=tracking)
    return RolledBack(champion=now.uri, rolled_back=before.uri)


def _contest(
    config: Config,
    store: xr.Dataset,
    challenger: Registered,
    champion: Registered | None,
    *,
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    """Scores of both on the test maps (without a champion: of one alone), and what to know."""
    from medicane import evaluate as verification
    from medicane import experiments
    from medicane import model as detector
    from medicane.sequences import split_times

    labels, storm = store["medicane"].values, store["storm"].values
    masks = split_times(store.indexes[names.TIME], labels, storm, config=config)
    if not (labels[masks["test"]] == names.MEDICANE).any():
        n_maps = int(masks["test"].sum())
        law = "must hold at least one medicane map to decide on"
        raise InputError("splits.test", law, found=f"none among {n_maps} maps")
    networks: dict[str, keras.Model] = {}
    for role, one in (("champion", champion), ("challenger", challenger)):
        if one is not None:
            networks[role] = detector.load_detector(experiments.model_file(one.uri).path)
    facts = {role: detector.facts_of(network) for role, network in networks.items()}
    _agree(config, facts)
    digest = str(store.attrs.get("content_digest", ""))
    notes = [
        f"the {role} was trained on another state of the store: if its training years were not "
        "those of this configuration it may have seen some of the test maps"
        for role, told in facts.items()
        if told.get("data_digest") != digest
    ]
    scored = {
        role: forecast_split(config, store, network, masks=masks, split="test", baselines=False)[0]
        for role, network in networks.items()
    }
    first = next(iter(scored.values()))
    forecasts = {role: one.forecasts[MODEL_NAME] for role, one in scored.items()}
    given: dict[str, Any] = {"split": "test", "kind": first.kind, "seed": seed}
    if len(forecasts) == 1:
        table = verification.verify(
            first.times, first.medicane, first.storm, forecasts=forecasts,
            train_medicane=labels[masks["train"]], **given,
        )  # fmt: skip
    else:
        table = verification.compare(
            first.times, first.medicane, first.storm, forecasts=forecasts,
            train_rate=first.train_rate, **given,
        )  # fmt: skip
    return table, notes


def _agree(config: Config, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse models that could not take each other's place."""
    challenger = facts["challenger"]
    wanted = config.label.version
    found = dict(challenger.get("label") or {}).get("version")
    if found != wanted:
        law = f"must know the label definition of the configuration, {wanted}"
        raise InputError("the challenger", law, found=found)
    if "champion" not in facts:
        return
    champion = facts["champion"]
    before = dict(champion.get("label") or {}).get("version")
    if before != found:
        law = f"must know the same label definition as the champion, {before}"
        raise InputError("the challenger", law, found=found)
    for key in _MUST_AGREE:
        if challenger.get(key) != champion.get(key):
            law = f"must have the same {key} as the champion, {champion.get(key)}"
            raise InputError("the challenger", law, found=challenger.get(key))


def _difference(config: Config, table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The score's difference, challenger minus champion; None without a champion."""
    found = table.get("differences", {}).get("challenger", {}).get(config.promotion.score)
    return None if found is None else dict(found)


def _verdict(
    config: Config, table: Mapping[str, Any], champion: Registered | None
) -> tuple[bool, str]:
    """Whether the challenger is promoted, and the reason in one sentence."""
    if champion is None:
        return True, "there is no champion yet"
    score, margin = _SPOKEN[config.promotion.score], config.promotion.margin
    found = _difference(config, table) or {"value": None, "low": None, "note": "no resamples"}
    if found["low"] is None:
        return False, f"the {score} difference has no interval: {found.get('note', 'undefined')}"
    promoted = found["low"] > margin
    told = (
        f"{score} differs by {found['value']:+.3f}, 95 % interval "
        f"[{found['low']:+.3f}, {found['high']:+.3f}], which does {'' if promoted else 'not '}"
        f"lie above {margin:g}"
    )
    return promoted, told


def _told(
    config: Config,
    challenger: Registered,
    champion: Registered | None,
    promoted: bool,
    reason: str,
    notes: list[str],
    table: Mapping[str, Any],
) -> str:
    """The decision for people, Markdown."""
    from medicane import report

    was = "none" if champion is None else f"version {champion.version}"
    lines = [
        f"# Version {challenger.version} {'is promoted' if promoted else 'is not promoted'}",
        "",
        f"{reason[0].upper()}{reason[1:]}.",
        "",
        f"* challenger: version {challenger.version} (`{challenger.uri}`)",
        f"* champion before: {was}",
        f"* rule: the lower end of the 95 % interval of the {_SPOKEN[config.promotion.score]} "
        f"difference above {config.promotion.margin:g}",
        *(f"* beware: {note}" for note in notes),
        "",
        (
            report.score_table_markdown(table)
            if champion is None
            else report.comparison_table_markdown(table)
        ),
        "",
    ]
    return "\n".join(lines)
