"""Acknowledged writes against what was found at the end: lost, duplicated and corrupted ones. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from certificate.verdict import Finding, Verdict
from chaos.history import Found, Write


@dataclass(frozen=True)
class Account:
    """The writes of one sort; names in the order that they were intended in."""

    sort: str
    tried: int
    acknowledged: int
    lost: tuple[str, ...]
    unsaved: tuple[str, ...]
    duplicated: tuple[str, ...]
    corrupted: tuple[str, ...]
    looked_for: bool = True

    @property
    def finding(self) -> Finding:
        """Refuted by the first promise to a writer that was broken; not judged where none was given or looked for."""
        if not self.looked_for:
            return Finding(Verdict.UNKNOWN, f"what was written ({self.sort}) was never looked for")
        for names, told in (
            (self.lost, "acknowledged and lost"),
            (self.corrupted, "found with another content"),
            (self.duplicated, "made twice"),
        ):
            if names:
                return Finding(Verdict.REFUTED, f"{len(names)} of {self.tried} writes ({self.sort}) {told}: {names[0]}")
        if not self.acknowledged:
            return Finding(Verdict.UNKNOWN, f"no write ({self.sort}) was acknowledged, so none could be lost")
        return Finding(Verdict.PROVEN)


def accounts(
    writes: Iterable[Write],
    found: Iterable[Found],
    unsaved: Callable[[Write], bool] = lambda _: False,
    *,
    looked_for: bool = True,
) -> list[Account]:
    """The account of every sort that was written or found; `unsaved` are writes that the target may lose by design.

    Not `looked_for`: a drill that ended before it read what there is says nothing of what there is not.

    Writers never use a name twice, not even when they try again: what is there twice was made twice. A write that was
    not acknowledged may be there, not at all, or half; but not twice.
    """
    written: dict[str, dict[str, Write]] = {}
    for write in sorted(writes, key=lambda write: write.intended_s):
        written.setdefault(write.sort, {})[write.name] = write
    there: dict[str, list[Found]] = {}
    for item in found:
        there.setdefault(item.sort, []).append(item)
    sorts = sorted({*written, *there})
    each = [_account(sort, written.get(sort, {}), there.get(sort, []), unsaved) for sort in sorts]
    return each if looked_for else [replace(one, lost=(), unsaved=(), looked_for=False) for one in each]


def _account(sort: str, written: dict[str, Write], there: list[Found], unsaved: Callable[[Write], bool]) -> Account:
    times = Counter(item.name for item in there)
    digests = {(item.name, item.digest) for item in there}
    promised = {name: write for name, write in written.items() if write.acknowledged}
    return Account(
        sort,
        tried=len(written),
        acknowledged=len(promised),
        lost=tuple(name for name, write in promised.items() if not times[name] and not unsaved(write)),
        unsaved=tuple(name for name, write in promised.items() if not times[name] and unsaved(write)),
        duplicated=tuple(name for name in written if times[name] > 1),
        corrupted=tuple(n for n, write in promised.items() if times[n] and (n, write.digest) not in digests),
    )
