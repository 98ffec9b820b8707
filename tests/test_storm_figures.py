"""A storm's life in figures: what is drawn is what was handed in."""

from __future__ import annotations

import io

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from medicane.errors import InputError
from medicane.report.figures import style
from medicane.report.storm_figures import (
    frame_around,
    looked_at,
    phase_space_paths,
    storm_line,
    storm_maps,
)

EVIL = r"$\frac{ & Ianos"
LATITUDE, LONGITUDE = np.arange(44.0, 30.0, -1), np.arange(5.0, 25.0)


def sea(n: int = 3, channels: tuple[str, ...] = ("msl_local", "thickness_600_300_local")):
    """A warm low that moves a degree east a map."""
    lat, lon = np.meshgrid(LATITUDE, LONGITUDE, indexing="ij")
    storm = [np.exp(-((lat - 37) ** 2 + (lon - 12 - k) ** 2) / 3) for k in range(n)]
    scales = {"msl_local": -1500.0, "msl": -1500.0, "thickness_600_300_local": 40.0, "lsm": 0.0}
    values = [[scales[name] * one - (name == "msl_local") for name in channels] for one in storm]
    return xr.DataArray(
        np.array(values),
        coords={
            "time": np.datetime64("2020-09-15", "ns") + 6 * np.arange(n) * np.timedelta64(1, "h"),
            "channel": list(channels),
            "latitude": LATITUDE,
            "longitude": LONGITUDE,
        },
        dims=("time", "channel", "latitude", "longitude"),
    )


def drawn(figure: Figure) -> Figure:
    """The figure, after it could be saved."""
    with style():
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure


def texts(figure: Figure) -> str:
    said = [ax.get_title(loc="left") + ax.get_title() for ax in figure.axes]
    said += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " | ".join(said + [ax.get_xlabel() for ax in figure.axes])


def test_a_panel_for_each_map() -> None:
    centres = np.array([[37.0, 12.0], [37.0, 13.0], [np.nan, np.nan]])
    figure = drawn(storm_maps(sea(), centres=centres, titles=["a", "b", EVIL], path=centres))
    *panels, bar = figure.axes
    assert len(panels) == 3
    assert EVIL in texts(figure)
    assert "600-300 hPa" in bar.get_xlabel()
    # One scale for all, both signs or one; one frame, inside the maps.
    shaded = [ax.collections[0] for ax in panels]
    assert len({one.get_clim() for one in shaded}) == 1
    assert {ax.get_xlim() for ax in panels} == {(12 - 5.625, 13 + 5.625)}
    assert {ax.get_ylim() for ax in panels} == {(32.5, 41.5)}
    # The circle is two lines, white under black, beside the path; none where there is no low.
    assert [len(ax.lines) for ax in panels] == [3, 3, 1]
    np.testing.assert_array_equal(panels[1].lines[-1].get_xydata(), [[13, 37]])


def test_maps_without_a_channel_to_shade_or_a_low() -> None:
    figure = drawn(storm_maps(sea(1, ("lsm",)), centres=[[np.nan, np.nan]], titles=["none"]))
    assert figure.axes[0].get_xlim() == (5, 24)  # the whole map


@pytest.mark.parametrize(
    ("n", "centres", "law"),
    [(7, 7, "draws 1 to 6 maps; found 7"), (3, 2, "needs 3 centres and titles; found 2 and 3")],
)
def test_maps_that_do_not_fit(n: int, centres: int, law: str) -> None:
    with pytest.raises(InputError, match=law):
        storm_maps(sea(n), centres=np.full((centres, 2), 37.0), titles=["x"] * n)


def test_the_frame_stays_inside_the_maps() -> None:
    assert frame_around(sea(), np.array([[31.0, 24.0]])) == (31, 35.5, 24 - 5.625, 24)
    assert frame_around(sea(), np.full((2, 2), np.nan)) == (31, 44, 5, 24)


def test_probability_against_the_label() -> None:
    times = sea(8).time.values
    p = np.array([0, 0.1, 0.4, 0.9, np.nan, 0.8, 0.3, 0.1])
    labels = np.array([0, -1, 1, 1, 1, 1, -1, 0])
    figure = drawn(
        storm_line(
            times,
            labels,
            probability={EVIL: p, "rule": p / 2},
            threshold=0.45,
            marked=times[[2, 5]],
        )
    )
    (ax,) = figure.axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), p)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), p / 2)
    assert list(ax.lines[-1].get_xdata()) == [0.5, 1.25]  # days
    for said in (EVIL, "rule", "threshold 0.45", "medicane in the catalogue", "unknown"):
        assert said in texts(figure)
    assert "days from 2020-09-15 00:00 UTC" in texts(figure)
    certain = drawn(storm_line(times, labels * 0, probability={"p": p}, threshold=None))
    assert "unknown" not in texts(certain)
    assert "threshold" not in texts(certain)


def test_the_way_through_the_phase_space() -> None:
    vtl = np.array([np.nan, -50.0, 20.0, 60.0, -10.0])
    store = {"vtl": vtl, "vtu": vtl + 15, "b": 30 - vtl / 4}
    truth = {"vtl": vtl + 5, "vtu": vtl + 25, "b": 25 - vtl / 4}
    labels = np.array([0, 0, 1, 1, -1])
    figure = drawn(phase_space_paths({"store": store, "truth": truth}, medicane=labels, b_max=20.0))
    upper, lower = figure.axes
    np.testing.assert_array_equal(upper.lines[0].get_ydata(), store["vtu"])
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), store["b"])
    np.testing.assert_array_equal(upper.lines[1].get_xdata(), [20, 60])  # medicanes are filled
    np.testing.assert_array_equal(upper.lines[2].get_xdata(), [np.nan, -50, -10])
    starts = [note.xy for note in upper.texts if note.get_text() == "A"]
    assert starts == [(-50, -35), (-45, -25)]  # the first map with a phase space
    assert "B of the rule 20 m" in texts(figure)
    nothing = {key: np.full(5, np.nan) for key in store}
    assert not drawn(phase_space_paths({"store": nothing}, medicane=labels)).axes[0].texts


def test_where_it_looked() -> None:
    one = sea()[1]
    signed = one[1, ::2, ::2] - 5
    signed.attrs["long_name"] = "loss of logit"
    share = abs(one[1, ::4, ::4]) / 40
    figure = drawn(looked_at(one, {EVIL: signed, "attention": share}, centre=(37.0, 13.0)))
    panels, bars = figure.axes[:2], figure.axes[2:]
    assert [ax.collections[0].get_cmap().name for ax in panels] == ["RdBu_r", "YlOrRd"]
    low, high = panels[0].collections[0].get_clim()
    assert low == -high
    np.testing.assert_allclose(panels[0].collections[0].get_array(), signed)
    assert [bar.get_xlabel() for bar in bars] == ["loss of logit", "importance"]
    assert panels[0].get_xlim() == (5, 24)  # whole maps
    drawn(looked_at(one, {"nothing": signed * 0}, centre=(np.nan, np.nan)))
