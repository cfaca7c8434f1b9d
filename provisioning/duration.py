"""Durations, as Go writes them."""

import re

UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(UNITS_S)})")


def duration_s(text: str) -> float:
    """Seconds in a duration as Go prints it, `1m30s`; raises ValueError. Pure."""
    found = PART.findall(text)
    if not found or PART.sub("", text):
        raise ValueError(f"not a duration: {text!r}")
    return sum(float(number) * UNITS_S[unit] for number, unit in found)
