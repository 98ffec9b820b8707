"""The report page: self-contained, escaped, and whole in every odd case."""

from __future__ import annotations

import base64
import json
import re
import threading
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from medicane import report
from medicane.evaluate import Forecast, compare, read_scores, verify, write_scores
from medicane.report import telling_maps, write_report
from medicane.report.map_figures import case_map
from medicane.report.tables import (
    comparison_table_markdown,
    kind_table,
    score_table_markdown,
)

CHANNELS = ("msl_local", "u10", "v10", "thickness_900_600_local", "thickness_600_300_local", "lsm")
EVIL = '<script>alert("x")</script> $\\frac{ & Ianos'


def sea(*, n=1400, degrees=1.0, seed=0, names=("Rolf", "Zorbas", "Ianos", "Qendresa", "Apollo")):
    """A split as a store holds it: storms as warm, round lows on a noisy background."""
    rng = np.random.default_rng(seed)
    times = pd.Timestamp("2003-09-01") + pd.to_timedelta(np.arange(n) * 6, unit="h")
    lat, lon = np.arange(48, 27.9, -degrees), np.arange(-10, 42.01, degrees)
    labels, storm = np.zeros(n, np.int8), np.full(n, "", dtype=object)
    low_lat, low_lon = np.full(n, np.nan), np.full(n, np.nan)
    for k, name in enumerate(names):
        first = 60 + k * (n - 120) // max(len(names), 1)
        labels[first - 2 : first + 11] = -1
        labels[first : first + 9] = 1
        storm[first - 2 : first + 11] = name
        low_lat[first - 2 : first + 11] = np.linspace(35 + k % 3, 37 + k % 3, 13)
        low_lon[first - 2 : first + 11] = np.linspace(5 + 4 * k, 8 + 4 * k, 13)
    yy, xx = np.meshgrid(lat, lon, indexing="ij")
    noise = gaussian_filter(rng.normal(size=(40, lat.size, lon.size)), (0, 4, 4)) * 4 / degrees
    maps = np.zeros((n, len(CHANNELS), lat.size, lon.size), np.float32)
    for t in range(n):
        maps[t, 0], maps[t, 3], maps[t, 4] = (
            scale * noise[(t + shift) % 40] for scale, shift in ((250, 0), (12, 7), (15, 15))
        )
        maps[t, 1], maps[t, 2] = 5 * noise[(t + 3) % 40], 5 * noise[(t + 11) % 40]
        if np.isfinite(low_lat[t]):
            dy, dx = yy - low_lat[t], (xx - low_lon[t]) * 0.8
            bump = np.exp(-(dx**2 + dy**2) / 2.5)
            maps[t, 0] -= 1400 * bump
            maps[t, 3] += 30 * bump
            maps[t, 4] += 40 * bump
            maps[t, 1] -= 14 * dy * bump
            maps[t, 2] += 14 * dx * bump
    probability = 1 / (1 + np.exp(-(rng.normal(-4, 1.1, n) + 5 * (labels != 0))))
    missed = storm == (names[-1] if names else "none")
    probability[missed] = np.minimum(probability[missed], 0.2)
    store = xr.Dataset(
        {
            "maps": (("time", "channel", "latitude", "longitude"), maps),
            "medicane": ("time", labels),
            "storm": ("time", storm.astype(str)),
        },
        {"time": times, "channel": list(CHANNELS), "latitude": lat, "longitude": lon},
    )
    rule = np.where(labels == 1, rng.random(n) < 0.5, rng.random(n) < 0.02)
    forecasts = {
        "detector": Forecast(
            probability, threshold=0.4, centre_latitude=low_lat, centre_longitude=low_lon
        ),
        "phase_space": Forecast(np.where(rule, 0.4, 0.01), detection=rule, note="a rule"),
        "climatology": Forecast(np.full(n, 0.03), detection=np.zeros(n, bool)),
    }
    return store, forecasts


def scored(store, forecasts, *, n_resamples=60):
    return verify(
        store.indexes["time"],
        store["medicane"].values,
        store["storm"].values,
        forecasts=forecasts,
        train_medicane=np.array([0] * 97 + [1] * 3),
        n_resamples=n_resamples,
    )


def written(folder, store, forecasts, **options):
    scores = scored(store, forecasts)
    facts = options.pop("facts", {"Model": "models:/medicane@champion", "Temperature": 1.3})
    path = write_report(
        folder / "report.html",
        scores=scores,
        store=store,
        forecasts=forecasts,
        facts=facts,
        **options,
    )
    return path, scores


class Reader(HTMLParser):
    """Collects tags and texts, and checks that every element is closed."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    store, forecasts = sea()
    return written(tmp_path_factory.mktemp("report"), store, forecasts, idealised=True)


def test_the_page_is_self_contained(page):
    path, _ = page
    reader = read(path)
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for key in ("src", "href"):
            if key in attributes:
                assert attributes[key].startswith(("data:image/png;base64,", "#"))
    style = re.search(r"<style>(.*?)</style>", path.read_text(), re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style
    targets = {a["href"][1:] for t, a in reader.tags if t == "a"}
    assert targets <= {a.get("id") for _, a in reader.tags}


def test_each_figure_lies_beside_the_page_and_has_an_alt_text(page):
    path, _ = page
    images = [a for t, a in read(path).tags if t == "img"]
    files = {file.name: file.read_bytes() for file in (path.parent / "figures").iterdir()}
    assert set(files) == {
        f"{key}.png"
        for key in (
            "scores",
            "probability",
            "storms",
            "reliability",
            "precision_recall",
            "best_hit",
            "worst_miss",
            "worst_false_alarm",
        )
    }
    inline = {base64.b64decode(a["src"].split(",", 1)[1]) for a in images}
    assert inline == set(files.values())
    assert all(len(a["alt"]) > 20 for a in images)
    for name in files:
        pixels = imread(path.parent / "figures" / name)[..., :3]
        assert pixels.shape[1] > 600
        assert np.ptp(pixels) > 0.5  # something is drawn


def test_the_tables_hold_the_scores(page):
    path, scores = page
    text = " ".join(read(path).text)
    for name in scores["models"]:
        assert name in text
    for storm in ("Rolf", "Zorbas", "Ianos", "Qendresa", "Apollo"):
        assert storm in text
    found = scores["models"]["detector"]
    for key in ("csi", "pod", "far", "auc_pr", "brier_skill", "ets", "hss", "sedi"):
        assert f"{found[key]['value']:.2f}" in text
    assert f"{found['csi']['low']:.2f} to {found['csi']['high']:.2f}" in text
    assert f"{found['events']['hits']} of 5" in text
    assert "minus phase_space" in text
    assert "models:/medicane@champion" in text
    assert "undefined: no detections" in text  # the climatology's FAR says why
    assert len([t for t, _ in read(path).tags if t == "table"]) == 4


def test_the_synthetic_banner_comes_first_and_only_where_due(page, tmp_path):
    path, _ = page
    text = path.read_text()
    assert text.index("Synthetic data only") < text.index('class="cards"')
    store, forecasts = sea(n=200, names=("Rolf",), degrees=2.0)
    real, _ = written(tmp_path, store, forecasts)
    assert "Synthetic" not in real.read_text()


def test_untrusted_text_is_escaped(tmp_path):
    store, forecasts = sea(n=500, degrees=2.0, names=(EVIL, EVIL + "2"))
    forecasts = {f"{name} <img src=x onerror=y> $\\a": f for name, f in forecasts.items()}
    path, _ = written(
        tmp_path, store, forecasts, facts={"<b>key": "</dd><script>"}, title="<title> {braces}"
    )
    reader = read(path)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert all("onerror" not in attributes for _, attributes in reader.tags)
    text = "".join(reader.text)
    assert EVIL in text
    assert "</dd><script>" in text
    assert "{braces}" in text


def test_scores_read_back_from_the_file_make_the_same_page(tmp_path):
    store, forecasts = sea(n=300, degrees=2.0, names=("Rolf", "Ianos"))
    path, scores = written(tmp_path / "a", store, forecasts)
    back = read_scores(write_scores(tmp_path / "scores.json", scores))
    again = write_report(
        tmp_path / "b" / "report.html",
        scores=back,
        store=store,
        forecasts=forecasts,
        facts={"Model": "models:/medicane@champion", "Temperature": 1.3},
    )
    cut = re.compile(r"<footer>.*", re.S)
    assert cut.sub("", again.read_text()) == cut.sub("", path.read_text())


def perfect(store, forecasts):
    exact = np.where(store["medicane"].values == 1, 0.95, 0.02)
    return {**forecasts, "detector": Forecast(exact, threshold=0.5)}


def test_without_misses_and_false_alarms_it_says_so(tmp_path):
    store, forecasts = sea(n=400, degrees=2.0, names=("Rolf", "Ianos"))
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "worst_miss.png").write_bytes(b"of an earlier report")
    (figures / "mine.png").write_bytes(b"kept")
    path, _ = written(tmp_path, store, perfect(store, forecasts))
    text = path.read_text()
    assert "No miss: every medicane map was detected." in text
    assert "No false alarm: no episode stood alone" in text
    assert (figures / "best_hit.png").exists()
    assert not (figures / "worst_miss.png").exists()
    assert (figures / "mine.png").read_bytes() == b"kept"


@pytest.mark.parametrize("case", ["no storm", "no forecast", "gaps", "unknown only", "few maps"])
def test_odd_splits_make_whole_pages(tmp_path, case):
    store, forecasts = sea(n=300, degrees=2.0, names=("Rolf",))
    if case == "no storm":
        store, forecasts = sea(n=300, degrees=2.0, names=())
    elif case == "no forecast":
        nothing = Forecast(np.full(300, np.nan), threshold=0.5)
        forecasts = {**forecasts, "detector": nothing}
    elif case == "gaps":
        keep = np.r_[0:40, 55:180, 250:300]
        store = store.isel(time=keep)
        forecasts = {name: forecast.at(keep) for name, forecast in forecasts.items()}
    elif case == "unknown only":
        store["medicane"][:] = -1
    else:
        store = store.isel(time=slice(0, 2))
        forecasts = {name: f.at(np.arange(300) < 2) for name, f in forecasts.items()}
    path, _ = written(tmp_path, store, forecasts)
    text = path.read_text()
    assert "NaN" not in re.sub(r"base64,[^\"]*", "", text)
    read(path)
    if case == "no storm":
        assert "This split holds no storm." in text


def test_a_store_without_maps(tmp_path):
    store, forecasts = sea(n=300, degrees=2.0, names=("Rolf", "Ianos"))
    path, _ = written(tmp_path / "a", store.drop_vars("maps"), forecasts)
    assert not (tmp_path / "a" / "figures" / "best_hit.png").exists()
    read(path)


@pytest.mark.parametrize("channels", [["lsm"], ["u10", "v10"], ["msl_local"], list(CHANNELS)])
@pytest.mark.parametrize("centre", [None, (36.5, 6.5), (np.nan, np.nan), (28.0, 42.0)])
def test_a_map_of_whatever_channels_there_are(channels, centre):
    store, _ = sea(n=300, degrees=2.0, names=("Rolf", "Ianos"))
    one = store["maps"].sel(channel=channels).isel(time=64)
    figure = case_map(one, centre=centre, title=EVIL)
    figure.canvas.draw()
    whole = figure.axes[0]
    assert whole.get_xlim() == (-10, 42)
    assert whole.get_title(loc="left") + whole.get_title() == EVIL
    # The zoom stays inside the domain, whatever the centre.
    for ax in figure.axes[1 : len(figure.axes) - 1]:
        assert ax.get_xlim()[0] >= -10
        assert ax.get_xlim()[1] <= 42
    circles = [line for line in whole.lines if line.get_marker() == "o"]
    finite = centre is not None and np.isfinite(centre).all()
    if finite:
        assert (circles[-1].get_ydata()[0], circles[-1].get_xdata()[0]) == centre
    elif "msl_local" in channels:
        row, column = np.unravel_index(
            np.argmin(one.sel(channel="msl_local").values), one.shape[1:]
        )
        assert circles[-1].get_ydata()[0] == one.latitude[row]
        assert circles[-1].get_xdata()[0] == one.longitude[column]
    else:
        assert circles == []


def test_telling_maps_are_the_extremes():
    store, forecasts = sea()
    events = scored(store, forecasts)["models"]["detector"]["events"]
    forecast = forecasts["detector"]
    cases = {
        case.kind: case
        for case in telling_maps(store["time"].values, store["medicane"].values, forecast, events)
    }
    p, labels = np.asarray(forecast.probability), store["medicane"].values
    best = cases["Best hit"].map
    assert labels[best] == 1
    assert p[best] == p[labels == 1].max()
    worst = cases["Worst miss"].map
    assert str(store["storm"].values[worst]) == "Apollo"
    assert p[worst] < 0.4
    false = cases["Worst false alarm"].map
    assert labels[false] == 0
    assert p[false] == max(
        e["max_probability"] for e in events["episodes"] if e["outcome"] == "false alarm"
    )
    assert f"{p[false]:.2f}" in cases["Worst false alarm"].text


def test_when_no_storm_is_missed_the_least_probable_map_is_shown():
    store, _ = sea(n=300, degrees=2.0, names=("Rolf",))
    labels = store["medicane"].values
    p = np.where(labels == 1, 0.9, 0.02)
    weakest = np.flatnonzero(labels == 1)[3]
    p[weakest] = 0.1
    forecast = Forecast(p, threshold=0.5)
    events = scored(store, {"m": forecast})["models"]["m"]["events"]
    case = telling_maps(store["time"].values, labels, forecast, events)[1]
    assert case.map == weakest
    assert "no storm was missed" in case.text


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    store, forecasts = sea(n=200, degrees=2.0, names=("Rolf",))
    path = tmp_path / "report.html"
    path.write_text("the previous report")
    monkeypatch.setattr(report, "_template", lambda: "{no_such_key}")
    with pytest.raises(KeyError):
        written(tmp_path, store, forecasts)
    assert path.read_text() == "the previous report"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_look_stays_in_the_report(tmp_path):
    before = dict(matplotlib.rcParams)
    store, forecasts = sea(n=200, degrees=2.0, names=("Rolf",))
    thread = threading.Thread(target=written, args=(tmp_path, store, forecasts))
    thread.start()
    thread.join()
    assert (tmp_path / "report.html").exists()
    assert dict(matplotlib.rcParams) == before


def test_markdown_table(page):
    _, scores = page
    text = score_table_markdown(scores)
    lines = text.splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 9
    assert lines[2].startswith("| detector | 0.")
    assert re.search(r"0\.\d\d \[0\.\d\d, \d\.\d\d\]", lines[2])
    assert "| – |" in lines[4]  # the climatology has no FAR
    assert "5 storms" in lines[-1]
    renamed = {**scores, "models": {"a|b": scores["models"]["detector"]}}
    assert "a\\|b" in score_table_markdown(renamed)
    json.dumps(scores, allow_nan=False)


def test_training_curves(tmp_path):
    history = pd.DataFrame(
        {"epoch": [1, 2, 3], "loss": [0.5, 0.3, 0.2], "val_loss": [0.4, 0.35, 0.36]}
    ).assign(val_auc_pr=[0.2, 0.5, 0.45], learning_rate=1e-3)
    path = report.training_curves(history, tmp_path / "curves.png")
    assert imread(path).shape[1] > 900
    with report.figure_folder() as folder:
        report.training_curves(history.iloc[:0], folder / "none.png")
        assert (folder / "none.png").stat().st_size > 1000
    assert not folder.exists()


def test_kinds_of_hard_negatives_have_a_table():
    store, forecasts = sea(n=500)
    kind = np.full(500, "", dtype=object)
    kind[:20], kind[100:110] = "heat_low", EVIL
    scores = verify(
        store.indexes["time"],
        store["medicane"].values,
        store["storm"].values,
        forecasts=forecasts,
        train_medicane=[0, 1],
        kind=kind,
        n_resamples=20,
    )
    text = kind_table(scores, list(forecasts))
    told = scores["models"]["detector"]["hard_negatives"]["kinds"]["heat_low"]
    assert f"<b>{100 * told['false_alarm_rate']:.2f} %</b>" in text
    assert text.count("<tr>") == 3
    assert EVIL not in text
    del scores["models"]["climatology"]["hard_negatives"]["kinds"]["heat_low"]
    assert "<td>–</td>" in kind_table(scores, list(forecasts))
    bare = kind_table(scored(store, forecasts), list(forecasts))
    assert "names no kinds of storm" in bare


def test_a_comparison_as_markdown():
    store, forecasts = sea(n=900)
    table = compare(
        store.indexes["time"],
        store["medicane"].values,
        store["storm"].values,
        forecasts={"a|b": forecasts["detector"], "rule": forecasts["phase_space"]},
        train_rate=0.03,
        n_resamples=60,
    )
    text = comparison_table_markdown(table)
    lines = text.splitlines()
    assert lines[0].startswith("| forecast | CSI")
    assert any(line.startswith("| minus a\\|b | CSI") for line in lines)
    difference = next(line for line in reversed(lines) if line.startswith("| rule |"))
    told = table["differences"]["rule"]["auc_pr"]
    assert told["high"] < 0
    assert f"{told['value']:.2f}".replace("-", "−") in difference
    assert "(-)" in difference
    table["differences"]["rule"]["csi"] = {"value": 0.1, "low": 0.05, "high": 0.2}
    assert "+0.10 [0.05, 0.20] (+)" in comparison_table_markdown(table)
