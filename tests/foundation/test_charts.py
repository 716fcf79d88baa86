import xml.etree.ElementTree as ET

import pytest

from foundation.charts import Axis, Series, line_chart, short_number


def test_points_lie_where_the_axes_say() -> None:
    svg = line_chart([Series("a", [0, 10], [1.0, 3.0]), Series("b", [0, 5, 10], [2, 2, 2])], "steps", "loss")
    root = ET.fromstring(svg)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in lines[0].attrib["points"].split())
    _, middle = map(float, lines[1].attrib["points"].split()[1].split(","))
    assert x0 < x1 and y0 > y1 and middle == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_text_is_escaped_and_boundaries_outside_are_left_out() -> None:
    svg = line_chart([Series("a<b", [1, 2], [1, 1])], "x & y", "z", boundaries=[(1.5, "in"), (9, "out")])
    ET.fromstring(svg)
    assert ">in<" in svg and ">out<" not in svg


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.11, 0.29, [0.15, 0.2, 0.25]), (-3, 4, [-2, 0, 2, 4])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 100).ticks == pytest.approx(ticks)


def test_short_numbers() -> None:
    assert [short_number(x) for x in (0.0003, 12, 4096, 12_000, 2.5e6, 1.1e13)] == [
        "0.0003", "12", "4096", "12k", "2.5M", "11T",
    ]  # fmt: skip
