import base64
import io
import math
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from mmlm.reports.charts import Line, compact_number, draw_chart, heat_map, peak_share, running_mean, thin_out
from mmlm.reports.run_folder import Series


def falling(count: int) -> Series:
    return Series(tuple(range(1, count + 1)), tuple(5 / step for step in range(1, count + 1)))


def pixels(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_chart_is_an_svg_in_the_colours_of_the_page():
    svg = draw_chart([Line(falling(100), "ink", smooth=True), Line(falling(9), "series-2")], "loss")
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg"
    assert root.attrib["aria-label"] == "loss"
    assert {"var(--ink)", "var(--series-2)", "var(--muted)", "var(--line)"} <= set(re.findall(r"var\([\w-]+\)", svg))
    assert "#0a0b" not in svg
    assert ">0<" in svg
    assert svg.count("<text") >= 6


def test_chart_leaves_the_settings_of_matplotlib_alone_and_is_the_same_again():
    before = dict(mpl.rcParams)
    lines = [Line(falling(30), "ink")]
    assert draw_chart(lines, "a") == draw_chart(lines, "a")
    assert dict(mpl.rcParams) == before


def test_ids_of_two_charts_do_not_meet():
    ids = [set(re.findall(r' id="([^"]+)"', draw_chart([Line(falling(30), "ink")], name))) for name in ("a", "b")]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_ticks_keep_their_digits():
    small = Series((1, 2), (0.0, 0.0015))
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", draw_chart([Line(small, "ink")], "rate"))]
    assert any(0.0001 < tick < 0.002 for tick in ticks)
    assert "%" in draw_chart([Line(small, "ink")], "share", percent=True)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((1e-5, 1e-1), ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        ((3.0, 30.0), ["5", "10", "20"]),
        ((1.0, 1.2), ["1", "1.2"]),
        ((0.0, 2.0, -1.0, math.nan), ["2"]),
        ((0.0, 0.0), ["0"]),
    ],
)
def test_a_logarithmic_axis_has_a_few_round_marks(values, ticks):
    series = Series(tuple(range(len(values))), values)
    svg = draw_chart([Line(series, "ink")], "log", log=True)
    marks = re.findall(r">([\d.e-]+)</text>", svg)
    assert set(ticks) <= set(marks)
    assert len(marks) <= 12
    assert "nan" not in svg.lower()


def test_name_is_escaped():
    assert 'aria-label="&lt;b&gt; &quot;x&quot;"' in draw_chart([Line(falling(3), "ink")], '<b> "x"')


@pytest.mark.parametrize(
    "values", [(1.0,), (0.0, 0.0), (math.nan,), (1.0, math.nan, 2.0), (math.inf, 1.0), (-3.0, -1.0), (1e30, 1.0)]
)
def test_odd_series_can_be_drawn(values):
    series = Series(tuple(range(len(values))), values)
    svg = draw_chart([Line(series, "ink", smooth=True, low=series, high=series)], "odd")
    assert svg.startswith("<svg")
    assert "nan" not in svg.lower()


def test_running_mean_against_plain_means():
    values = [float(i % 7) for i in range(200)]
    smooth = running_mean(values)
    assert len(smooth) == 200
    assert smooth[0] == values[0]
    assert smooth[100] == pytest.approx(np.mean(values[95:106]))
    assert smooth[2] == pytest.approx(np.mean(values[0:5]))
    assert smooth[199] == pytest.approx(np.mean(values[194:]))


def test_running_mean_passes_over_what_is_not_finite():
    values = [1.0] * 100
    values[50] = math.nan
    assert running_mean(values) == [1.0] * 100
    assert all(math.isnan(value) for value in running_mean([math.nan, math.inf]))


def test_thin_out_keeps_short_series_and_the_last_point():
    short, long = falling(240), falling(10_007)
    assert thin_out(short) is short
    thin = thin_out(long)
    assert len(thin.steps) == len(thin.values) == 240
    assert (thin.steps[-1], thin.values[-1]) == (10_007, 5 / 10_007)
    assert list(thin.steps) == sorted(set(thin.steps))
    assert list(thin.values) == sorted(thin.values, reverse=True)


def test_heat_map_is_clear_up_to_an_even_share():
    assert pixels(heat_map([0.25] * 4, (2, 2), full=2.0))[..., 3].max() == 0
    drawn = pixels(
        heat_map([0.1, 0.2, 0.25, 0.3, 0.9, 0.05], (2, 3), full=peak_share([[0.1, 0.2, 0.25, 0.3, 0.9, 0.05]]))
    )
    assert drawn.shape == (2, 3, 4)
    assert np.unravel_index(drawn[..., 3].argmax(), (2, 3)) == (1, 1)
    # The even share is 0.3: four patches are at or below it and only one above.
    assert (drawn[..., 3] > 0).sum() == 1


def test_heat_map_does_not_depend_on_the_sum_and_survives_bad_weights():
    weights = [0.1, 0.2, 0.3, 0.4]
    assert heat_map(weights, (2, 2), 2.0) == heat_map([10 * weight for weight in weights], (2, 2), 2.0)
    for bad in ([0.0] * 4, [math.nan] * 4, [-1.0, 0.0, 0.0, 0.0]):
        assert pixels(heat_map(bad, (2, 2), 2.0))[..., 3].max() == 0


def test_peak_share():
    assert peak_share([[0.25] * 4]) == 2.0
    assert peak_share([[0.7, 0.1, 0.1, 0.1], [0.25] * 4]) == pytest.approx(2.8)
    assert peak_share([]) == 2.0
    assert peak_share([[0.0, 0.0], [math.nan, 1.0]]) == 2.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.002, "0.002"),
        (1500, "1.5k"),
        (2e7, "20M"),
        (3e9, "3G"),
        (-1500, "-1.5k"),
        (45, "45"),
        (11.85, "11.85"),
    ],
)
def test_compact_number(value, text):
    assert compact_number(value) == text
