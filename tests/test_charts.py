"""Charts: what is drawn lies where it should, in SVG and in PNG alike."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from vqvdm.charts import ACCENT, SECOND, Series, line_chart, line_charts_png


def test_a_curve_lies_between_its_axes():
    svg = line_chart([Series("a", [(0, 1.0), (10, 3.0)])], "title", "x", "y", size=(440, 280))
    points = re.search(r'polyline points="([^"]+)" fill="none" stroke="var\(--accent', svg)
    assert points is not None
    (x1, y1), (x2, y2) = ([float(value) for value in pair.split(",")] for pair in points[1].split())
    assert (x1, x2) == (54.0, 416.0), "from end to end"
    assert 34 <= y2 < y1 <= 236, "the larger value is higher"
    assert "title" in svg and ">a</text>" in svg


def test_the_png_has_the_curve_where_the_svg_has_it():
    flat = [(0.0, 2.0), (10.0, 2.0), (20.0, 3.0)]
    series = [Series("", flat)]
    svg = line_chart(series, "", "x", "y")
    path = re.search(r'polyline points="([^"]+)" fill="none" stroke="var\(--accent', svg)
    assert path is not None
    (x1, y1), (x2, _), _ = ([float(value) for value in pair.split(",")] for pair in path[1].split())
    with Image.open(io.BytesIO(line_charts_png([(series, "x", "y", False)]))) as image:
        assert image.size == (880, 560)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    accent = [int(ACCENT[ACCENT.index("#") + 1 :][k : k + 2], 16) for k in (0, 2, 4)]
    on_the_line = pixels[round(2 * y1), round(x1 + x2)]
    assert np.abs(on_the_line - accent).max() < 40


def test_several_charts_stand_in_a_grid():
    one = ([Series("", [(0, 1.0), (1, 2.0)], SECOND)], "x", "y", False)
    with Image.open(io.BytesIO(line_charts_png([one] * 3, columns=2))) as image:
        assert image.size == (2 * 880, 2 * 560)
        pixels = np.asarray(image.convert("RGB"))
    drawn = [(pixels[a : a + 560, b : b + 880] < 200).any() for a in (0, 560) for b in (0, 880)]
    assert drawn == [True, True, True, False]
