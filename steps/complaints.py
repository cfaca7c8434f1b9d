"""How checks over several machines or workloads fail: with everything that is wrong, by name."""

from collections.abc import Mapping, Sequence

Complaints = Mapping[str, Sequence[str]]


def none_of(complaints: Complaints) -> None:
    """Fail with each complaint and whose it is, expected and actual; pass when nobody complains.

    Raises ValueError when nobody was asked: that would be a pass about nothing.
    """
    if not complaints:
        raise ValueError("nothing was looked at, so nothing was judged")
    told = "; ".join(f"{name}: {line}" for name, lines in complaints.items() for line in lines)
    if told:
        raise AssertionError(told)


def unless(holds: bool, complaint: str) -> list[str]:
    """The complaint in a list, or an empty list where things are as they should be."""
    return [] if holds else [complaint]
