"""Intervals by hand."""

from __future__ import annotations

import math

import pytest

from mnemo.learning.intervals import interval, ratio_interval


def test_a_mean_of_five_has_students_interval():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0, float("nan")])
    half = 2.7764 * math.sqrt(2.5) / math.sqrt(5)  # t of 4 degrees of freedom at 97.5%
    assert found == pytest.approx((3.0, 3 - half, 3 + half, 5), abs=1e-3)


def test_one_run_has_no_interval_and_none_no_value():
    one, none = interval([2.0]), interval([])
    assert one.value == 2 and math.isnan(one.low) and one.runs == 1
    assert math.isnan(none.value) and none.runs == 0


def test_a_ratio_is_a_geometric_mean_whichever_way_it_is_taken():
    there, back = ratio_interval([2.0, 8.0], [1.0, 1.0]), ratio_interval([1.0, 1.0], [2.0, 8.0])
    assert there.value == pytest.approx(4) and back.value == pytest.approx(1 / 4)
    assert there.low == pytest.approx(1 / back.high)
