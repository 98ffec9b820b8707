"""The model card of a detector, from its file, its map store and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medicane import names
from medicane.config import Config

if TYPE_CHECKING:
    import keras
    import xarray as xr

    from medicane.experiments import Registered
    from medicane.report import SplitFacts

#: Name of the artifact.
MODEL_CARD = "model_card.md"


def card_text(
    config: Config,
    store: xr.Dataset,
    network: keras.Model,
    masks: Mapping[str, NDArray[np.bool_]],
    *,
    model: Registered | str,
    run_id: str | None = None,
    scores: Mapping[str, Any] | None = None,
) -> str:
    """The model card, Markdown; see `medicane.report.model_card`.

    Parameters
    ----------
    store, masks
        The maps and their splits, for spans and base rates.
    network
        The detector.
    model
        The registered version, or a URI.
    run_id
        Of the training; by default that of the registered version.
    scores
        Of the test split, once there are any.
    """
    from medicane import model as detector
    from medicane import report

    uri = model if isinstance(model, str) else model.uri
    return report.model_card(
        model=uri,
        run_id=run_id if isinstance(model, str) else model.run_id,
        facts=detector.facts_of(network),
        network=f"{config.model.encoder}, {config.model.rnn}, {network.count_params()} weights",
        splits={name: _split_facts(store, mask) for name, mask in masks.items()},
        scores=scores,
    )


def _split_facts(store: xr.Dataset, mask: NDArray[np.bool_]) -> SplitFacts:
    from medicane.report import SplitFacts

    times = store.indexes[names.TIME][mask]
    labels = store["medicane"].values[mask]
    known = labels[labels != names.UNKNOWN]
    return SplitFacts(
        n_maps=int(mask.sum()),
        start=str(times[0])[:16].replace("T", " "),
        end=str(times[-1])[:16].replace("T", " "),
        base_rate=float((known == names.MEDICANE).mean()) if known.size else None,
    )
