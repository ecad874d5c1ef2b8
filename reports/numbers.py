"""How a number is shown: with its unit, in four digits, and counts in full."""

from __future__ import annotations

import math

import pandas as pd

DIGITS = 4
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_SCALED = {"B": (1024, _BINARY), "FLOP": (1000, tuple(f"{prefix}FLOP" for prefix in _DECIMAL))}


def known(value: object) -> float | None:
    """A finite number, or None for what is missing."""
    if value is None or value is pd.NA or not isinstance(value, int | float):
        return None if value is None or value is pd.NA else known(float(value))  # type: ignore[arg-type]
    return float(value) if math.isfinite(value) else None


def shown(value: float, unit: str) -> str:
    """``value`` in ``unit`` as text, for instance "12.05 MiB", "1,234 tokens/s", "1.123".

    A whole number of something is shown in full; bytes and FLOP take the prefix that fits.
    """
    if unit in _SCALED:
        base, names = _SCALED[unit]
        power = 0
        while abs(value) >= base and power < len(names) - 1:
            value, power = value / base, power + 1
        return f"{_digits(value)} {names[power]}"
    return _digits(value) if unit in {"1", "", "trials"} else f"{_digits(value)} {unit}"


def full(value: float, unit: str) -> str:
    """The same with bytes and FLOP in full, where one more counts."""
    return f"{value:,.0f} {unit}" if unit in _SCALED else shown(value, unit)


def span(low: float, high: float) -> str:
    """Both ends of an interval."""
    return f"[{_digits(low)}, {_digits(high)}]"


def read(text: str, unit: str) -> float:
    """The number that ``shown`` showed, as far as its digits go."""
    number, _, name = text.partition(" ")
    value = float(number.replace(",", ""))
    if unit in _SCALED:
        base, names = _SCALED[unit]
        return float(value * base ** names.index(name))
    return value


def _digits(value: float) -> str:
    if value == round(value) or abs(value) >= 10**DIGITS:
        return f"{value:,.0f}"
    text = f"{value:.{DIGITS}g}"
    if "e" in text:
        return text
    places = max(DIGITS - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{places}f}"
