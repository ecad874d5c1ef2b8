"""Numbers are shown with their unit and can be read back; missing is never a number."""

import math

import pandas as pd
import pytest

from reports import numbers
from reports.sheet import figure


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.1234567, "1", "1.123"),
        (12345.6, "tokens/s", "12,346 tokens/s"),
        (0.00123456, "ms", "0.001235 ms"),
        (1.5e-7, "s", "1.5e-07 s"),
        (0.0, "B", "0 B"),
        (512, "B", "512 B"),
        (12.63 * 2**30, "B", "12.63 GiB"),
        (4096, "B", "4 KiB"),
        (56.33e12, "FLOP", "56.33 TFLOP"),
        (206, "trials", "206"),
        (39976960, "1", "39,976,960"),
        (-2.5, "ms", "-2.500 ms"),
    ],
)
def test_shown_and_read_back(value: float, unit: str, text: str) -> None:
    assert numbers.shown(value, unit) == text
    assert math.isclose(numbers.read(text, unit), value, rel_tol=0.5e-3)


def test_where_a_byte_counts_all_are_shown() -> None:
    assert numbers.full(1_000_064, "B") == "1,000,064 B"
    assert numbers.full(1.2345, "ms") == "1.234 ms"


@pytest.mark.parametrize("value", [None, pd.NA, float("nan"), math.inf])
def test_missing_is_shown_as_what_it_is(value: object) -> None:
    cell = figure(value, "ms", "oom")
    assert (cell.text, cell.value) == ("oom", None)


def test_an_interval_stands_behind_its_figure() -> None:
    assert figure(1.1, "ms", low=1.0, high=1.25)[:3] == ("1.100 ms", 1.1, "[1, 1.250]")
    assert figure(1.1, "ms", low=float("nan"), high=1.25).small == ""
