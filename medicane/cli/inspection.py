"""The command that looks at a source before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from medicane.cli.terminal import app, say
from medicane.errors import InputError

if TYPE_CHECKING:
    from medicane.pipeline import Inspected

#: So many names of a long list are told.
TOLD = 8


@app.command
def inspect(
    *inputs: str,
    config: Annotated[Path | None, Parameter(name="--config")] = None,
    units: dict[str, str] | None = None,
    select: dict[str, float] | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Say what a source holds, what is missing, and how it would be read.

    Reads headers and coordinates only. Exit status 0 if the channels can be made of it, 2 if not.

    Example: medicane inspect 'data/era5/*.nc'

    Parameters
    ----------
    inputs
        Files, globs, stores, URIs or a folder of map images; by default those of the configuration.
    config
        Ask for the channels, area, spacing and step of this configuration, not for the default.
    units
        Units that the files do not state: --units.msl hPa
    select
        One value of an extra dimension: --select.number 0
    as_json
        As JSON.
    """
    from medicane import pipeline
    from medicane.config import load_config

    if not inputs and config is None:
        raise InputError("URI", "a file, glob, store or folder must be given", found="none")
    found = pipeline.inspect(
        inputs, config=load_config(config) if config else None, units=units, select=select
    )
    say(found.model_dump_json(indent=1) if as_json else _account(found))
    if found.missing:
        law = f"must hold what the channels need ({', '.join(found.channels)})"
        raise InputError(found.where, law, found=f"no {'; no '.join(found.missing)}")
    if found.fault:
        raise InputError(*found.fault.split(": ", 1))


def _account(found: Inspected) -> str:
    lines = [
        ("source", found.where + (f" ({found.n_files} files)" if found.n_files > 1 else "")),
        ("dialect", found.dialect),
        ("dimensions", ", ".join(f"{name} {size}" for name, size in found.dimensions.items())),
        ("times", _times(found)),
        ("sequences", found.sequences),
        ("grid", found.grid),
    ]
    if found.area:
        box = found.area
        text = f"{box['south']:g} to {box['north']:g} N, {box['west']:g} to {box['east']:g} E"
        if found.spacing:
            text += f", every {found.spacing[0]:g} x {found.spacing[1]:g} degrees"
        lines.append(("area", text))
    if found.levels:
        lines.append(("levels", ", ".join(f"{p:g}" for p in found.levels) + " hPa"))
    if found.versions:
        lines.append(("versions", ", ".join(f"{n} of {v}" for v, n in found.versions.items())))
    lines += [("variables" if i == 0 else "", row) for i, row in enumerate(_variables(found))]
    if found.left_out:
        lines.append(("left out", _some(found.left_out)))
    lines.append(("channels", ", ".join(found.channels)))
    lines.append(("missing", "; ".join(found.missing) or "nothing"))
    if found.fault:
        lines.append(("refused", found.fault.removeprefix(f"{found.where}: ")))
    lines.append(("reading", found.reading))
    return "\n".join(f"{name:<10} {text}" for name, text in lines if text)


def _times(found: Inspected) -> str:
    if not found.n_times:
        return "none that are understood"
    text = f"{found.n_times}, {found.first} to {found.last}"
    text = f"1, {found.first}" if found.n_times == 1 else text
    if found.step_hours:
        text += f", every {found.step_hours:g} h"
        gaps = [f"{before} to {after}" for before, after in found.gaps]
        text += f"; gaps: {_some(gaps)}" if gaps else ", no gap"
    if found.n_repeated:
        text += f"; {found.n_repeated} repeated"
    if not found.in_order:
        text += "; not in order"
    if found.calendar not in (None, "standard", "proleptic_gregorian"):
        text += f"; calendar {found.calendar}"
    return text


def _variables(found: Inspected) -> list[str]:
    known = sorted(
        (v for v in found.variables if v.name), key=lambda v: (str(v.name), [-p for p in v.levels])
    )
    others = [v.field for v in found.variables if not v.name]
    rows = []
    for variable in known:
        what = f"{variable.field} ({variable.units or 'no units'})"
        becomes = f"{variable.name} ({variable.target_units})"
        if variable.standard_name:
            becomes += f", {variable.standard_name}"
        if len(variable.levels) == 1:
            becomes += f", at {variable.levels[0]:g} hPa"
        elif variable.levels:
            becomes += f", {len(variable.levels)} levels"
        rows.append(f"{what} -> {becomes}" + (f": {variable.note}" if variable.note else ""))
    if others:
        rows.append(f"not known: {_some(others)}")
    return rows


def _some(texts: list[str]) -> str:
    more = len(texts) - TOLD
    return ", ".join(texts[:TOLD]) + (f" and {more} more" if more > 0 else "")
