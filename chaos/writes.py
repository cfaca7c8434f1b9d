"""Acknowledged writes against what was found at the end: lost, duplicated and corrupted ones. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from chaos.history import Found, Write


@dataclass(frozen=True)
class Account:
    """The writes of one sort; names in the order that they were intended in."""

    sort: str
    tried: int
    acknowledged: int
    lost: tuple[str, ...]
    duplicated: tuple[str, ...]
    corrupted: tuple[str, ...]
    surprising: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether every promise that was given to a writer was kept. A write found without one breaks none."""
        return not (self.lost or self.duplicated or self.corrupted)


def accounts(writes: Iterable[Write], found: Iterable[Found]) -> list[Account]:
    """The account of every sort that was written or found.

    Writers never use a name twice, not even when they try again: what is there twice was made twice.
    """
    written: dict[str, dict[str, Write]] = {}
    for write in sorted(writes, key=lambda write: write.intended_s):
        written.setdefault(write.sort, {})[write.name] = write
    there: dict[str, list[Found]] = {}
    for item in found:
        there.setdefault(item.sort, []).append(item)
    return [_account(sort, written.get(sort, {}), there.get(sort, [])) for sort in sorted({*written, *there})]


def _account(sort: str, written: dict[str, Write], there: list[Found]) -> Account:
    times = Counter(item.name for item in there)
    digests = {(item.name, item.digest) for item in there}
    promised = {name: write for name, write in written.items() if write.acknowledged}
    return Account(
        sort,
        tried=len(written),
        acknowledged=len(promised),
        lost=tuple(name for name in promised if not times[name]),
        duplicated=tuple(name for name in written if times[name] > 1),
        corrupted=tuple(name for name, write in written.items() if times[name] and (name, write.digest) not in digests),
        surprising=tuple(sorted(name for name in times if name not in promised)),
    )
