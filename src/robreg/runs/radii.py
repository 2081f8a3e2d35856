"""Strengths, radii and steps are in 1/255: find those that were written as a share of the range of pixels instead."""

import re

MAX_RADIUS = 255  # in 1/255: the whole range of a pixel
_UNITS = {"ar": "strengths", "compare": "strengths", "eps": "radii", "step": "steps"}  # what a key's values are
_FRACTION = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*/\s*(\d{1,9})\s*")
_DECIMAL = re.compile(r"\s*\d{0,9}\.?\d{1,9}(?:[eE]-\d{1,2})?\s*")
_USUAL = (1, 2, 4, 8, 16, 32, 64, 128)
_ROUNDED = 0.05  # a share with two digits, such as 0.03 for 8/255, differs by less than this part of what is meant


def describe_mistaken_radius(key: str, value: object) -> str | None:
    """Return what is wrong with the value of a key of config.yaml, and what to write; None if it may be in 1/255.

    Any value between 0 and 1 is taken for a share of the range of pixels, and so is any text that is a fraction. A step
    that must be so small is written as a fraction of eps. Keys that hold no strength, radius or step have no mistakes.
    """
    if key not in _UNITS:
        return None
    share = _as_fraction(value)
    number = _as_number(value) if share is None else share
    unit = f"{_UNITS[key]} are in 1/255"
    if number is None or number <= 0 or (share is None and 1 <= number <= MAX_RADIUS):
        return None
    if number > (MAX_RADIUS if share is None else 1):
        return f"{value!r} is more than the whole range of pixels, but {unit}: write at most {MAX_RADIUS}"
    relative = ", or a fraction of eps such as eps/4" if key == "step" else ""
    return f"{value!r} is a share of the range of pixels, but {unit}: {suggest_radius(number)}{relative}"


def suggest_radius(share: float) -> str:
    """Say what to write for a share of the range of pixels (0 to 1): "write 8 for 8/255"."""
    exact = share * MAX_RADIUS
    near = [usual for usual in _USUAL if abs(exact - usual) <= _ROUNDED * usual]
    radius = near[0] if near else round(exact, 1 if exact < 10 else None)
    radius = int(radius) if radius == int(radius) else radius
    return f"write {radius} for {radius}/255" if radius else "write 1 or more"


def _as_fraction(value: object) -> float | None:
    """Return the value of a text such as "8/255"; None for anything else."""
    match = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) / int(match[2]) if match and int(match[2]) else None


def _as_number(value: object) -> float | None:
    """Return a number, or a text that is a decimal between 0 and 1; None for anything else.

    Whole numbers in text are left to the schema, which wants them without quotes.
    """
    if isinstance(value, str):
        number = float(value) if _DECIMAL.fullmatch(value) else None
        return number if number is not None and number < 1 else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
