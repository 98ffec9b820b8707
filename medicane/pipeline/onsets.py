"""Which events are told of, once each, whatever happens between the telling and the remembering.

An onset is remembered as waiting before it is told, and as sent after it; each is a file replaced.
A process that dies in between tells again, under the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from medicane.notices import Channel, deliver, onset_notice
from medicane.pipeline.summaries import Told
from medicane.pipeline.watch_memory import Memory, Onset

#: Rows of ``events.csv``.
Events = Sequence[Mapping[str, Any]]


def note_onsets(
    memory: Memory, events: Events, channels: Sequence[Channel], *, oldest: np.datetime64
) -> list[str]:
    """Remember the onsets that are new: those of events that overlap none that is known.

    Parameters
    ----------
    oldest
        Onsets before it are history.

    Returns
    -------
    list of str
        Their ``event_id``.
    """
    found = []
    for event in events:
        known = [one for one in memory.onsets.values() if _overlap(one, event)]
        for one in known:  # a map more, a map less: the same event
            one.start, one.end = min(one.start, event["start"]), max(one.end, event["end"])
        if not known and np.datetime64(event["start"]) >= oldest:
            waiting: dict[str, Any] = {channel.name: "waiting" for channel in channels}
            memory.onsets[event["event_id"]] = Onset(
                start=event["start"], end=event["end"], channels=waiting
            )
            found.append(event["event_id"])
    return found


def tell(
    memory: Memory,
    events: Events,
    channels: Sequence[Channel],
    *,
    about: Mapping[str, Any],
    oldest: np.datetime64,
) -> Iterator[Told]:
    """Tell of the onsets that wait; what is told is to be remembered before the next is asked for.

    Parameters
    ----------
    about
        Attributes of the detections.
    oldest
        An onset before it that still waits is given up.
    """
    by_name: dict[str, Channel] = {channel.name: channel for channel in channels}
    for event_id, onset in memory.onsets.items():
        for name in [name for name, state in onset.channels.items() if state == "waiting"]:
            channel = by_name.get(name)
            event = next((e for e in events if _overlap(onset, e)), None)
            told: dict[str, Any] = {"event_id": event_id, "channel": name}
            state: Literal["sent", "waiting", "given up"]
            fault: str | None
            if event is None:
                state, fault = "given up", "it is no longer an event"
            elif channel is None:
                state, fault = "given up", "the channel is no longer configured"
            else:
                notice = onset_notice({**event, "event_id": event_id}, about)
                sent, fault = deliver(channel, notice)
                state = "sent" if sent else "waiting"
                if not sent and np.datetime64(onset.start) < oldest:
                    state, fault = "given up", f"{fault}; older than watch.notify_days"
            onset.channels[name] = state
            yield Told(**told, state=state, fault=fault)


def withdrawn(memory: Memory, events: Events) -> list[str]:
    """Events that were told and are none any more, since maps were revised."""
    return [
        event_id
        for event_id, onset in memory.onsets.items()
        if "sent" in onset.channels.values() and not any(_overlap(onset, e) for e in events)
    ]


def forget_onsets(memory: Memory, *, before: np.datetime64) -> None:
    """Events that ended before a time, and wait for nothing, cannot come back."""
    memory.onsets = {
        event_id: onset
        for event_id, onset in memory.onsets.items()
        if np.datetime64(onset.end) >= before or "waiting" in onset.channels.values()
    }


def _overlap(onset: Onset, event: Mapping[str, Any]) -> bool:
    return bool(onset.start <= event["end"] and event["start"] <= onset.end)
