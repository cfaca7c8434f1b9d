"""Campaigns against a target: visitors sent once, or again and again until its capacity is known.

Apart from the command line: a report needs no target, and would wait seconds for what is imported here.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from certificate.verdict import NotExercised
from chaos.journal import HealFailed
from chaos.ledger import PREFIX
from chaos.permission import refusal
from environments.load import EnvironmentInvalid
from environments.model import Visit
from load import report
from load.arrivals import Segment, Shape, duration_s, segments
from load.capacity import RATE_MAX, RATE_MIN
from load.condition import CONDITIONS, WELL, RollingUpdate, under
from load.found import Found, Searched
from load.leftovers import left_by, sweep
from load.objective import Summary
from load.plan import Plan
from load.record import BY_HAND, Mark, RecordError, begun, said_of
from load.run import Incomplete, Refused, Where, add, check, editor, header, nothing, place, run
from load.samples import sampling
from load.trials import Trials, Void
from provisioning.action import ActionFailed
from provisioning.cluster import UNAVAILABLE
from provisioning.hypervisor import HypervisorError
from provisioning.session import ProviderError, Session, open_session
from provisioning.state import Busy

MARK = f"{PREFIX}load-"  # what drills sweep, load's posts and files are swept with
NAMED = ("vip", "public")
# What keeps load from being sent, or a result from being one; each message says what to do.
REFUSALS = (
    Refused,
    Busy,
    RecordError,
    EnvironmentInvalid,
    ProviderError,
    NotExercised,
    ActionFailed,
    HypervisorError,
    HealFailed,
    OSError,
    ValueError,
    *UNAVAILABLE,
)


@dataclass(frozen=True)
class Order:
    """What people asked for in `command`: on which target, where visitors go, how many processes send them, and so on.

    `chaos` is the environment's name where it may be touched, `visits` sorts of visits with commas, `out` a folder.
    """

    command: str
    env: str
    to: str
    chaos: str
    workers: int
    visits: str
    out: Path | None

    def folder(self, session: Session, what: str) -> Path:
        """Where results go."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return self.out or Path("out") / session.environment.name / f"{what}-{now}"

    def permits(self, session: Session, what: str) -> None:
        """Only a target whose owner says so, and whose name is repeated, is touched; raises Refused."""
        if why := refusal(session.environment, self.chaos):
            raise Refused(f"{what}: {why}")

    def plan(self, session: Session, parts: Sequence[Segment], seed: int | None) -> Plan:
        """What is to be done, after a look whether the place answers; raises Refused."""
        at, described = place(session, self.to), session.environment.load
        check(session.environment, at)
        weights = dict(described.weights) if self.to in NAMED else {Visit.PAGE: 1.0}
        try:
            if self.visits:
                weights = {Visit(name.strip()): 1.0 for name in self.visits.split(",")}
            return Plan(
                url=at.url,  # type: ignore[arg-type]
                segments=tuple(parts),
                poisson_seed=seed,
                weights=weights,
                think_s=described.think_s,
                workers=self.workers,
                resolve=at.resolve,
                ca=at.ca,
                editor=editor(session.environment, at),
                mark=MARK,
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise Refused(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except ValueError as error:
            raise Refused(f"{error}; expected some of {', '.join(Visit)}") from error


def visitors(
    order: Order,
    parts: Sequence[Segment],
    seed: int | None,
    where: Where,
    told: str,
    say: Callable[[str], None],
    *,
    rolling_update: bool,
) -> tuple[Path, Summary]:
    """Send them, `told` in words, and report; returns the results' folder and what it sums up to. Raises REFUSALS."""
    session = open_session(order.env)
    if rolling_update:
        order.permits(session, "a rolling update")
    plan, folder = order.plan(session, parts, seed), order.folder(session, "load")
    say(f"{plan.url}: {told} by {plan.workers} workers")
    update = RollingUpdate(session, duration_s(parts) / 4) if rolling_update else None
    # What is left behind is swept by the mark of all drills: nobody else's may be under way.
    with session.state.locked("load"):
        return folder, _sent(session, order.command, plan, folder, say, where, update)


def capacity(
    order: Order, start: float, trial_s: float, seed: int, say: Callable[[str], None]
) -> tuple[Path, tuple[Searched, ...], str]:
    """Find the highest rate at which the objective holds, from `start` visitors a second on, by trials of `trial_s`.

    With `order.chaos` also with a worker, and a data node, away. Returns the results' folder, what was found, and why
    it ended early; empty where it did not. Raises REFUSALS before anything is sent.
    """
    segments(Shape.CONSTANT, start, trial_s)
    if not RATE_MIN <= start <= RATE_MAX:
        raise Refused(f"expected a --start from {RATE_MIN:g}/s to {RATE_MAX:g}/s, found {start:g}/s")
    session = open_session(order.env)
    wanted = session.environment.load.objective
    if wanted is None:
        raise Refused(f"the environment {session.environment.name} has no load.objective, which capacity is about")
    if order.chaos:
        order.permits(session, "to take machines away")

    def planned(rate: float, number: int) -> Plan:
        return order.plan(session, segments(Shape.CONSTANT, rate, trial_s), seed + number)

    first = header(session, planned(start, 0), order.command)
    folder = order.folder(session, "capacity")

    def generate(condition: str, rate: float, number: int, place: Path) -> Summary:
        lasting = () if condition == WELL else (Mark(what=condition, began_s=0, ended_s=trial_s),)
        return _sent(session, order.command, planned(rate, number), place, lambda _: None, marks=lasting)

    trials = Trials(session.environment, wanted, folder, generate, say)
    with session.state.locked("capacity"):
        folder.mkdir(parents=True)
        incomplete = _ended_early(lambda: _search(session, order, trials, start, seed))
    if not any(folder.iterdir()):
        folder.rmdir()
        raise Refused(incomplete)
    found = tuple(trials.searched)
    Found(header=first, searched=found, incomplete=incomplete).keep(folder)
    return folder, found, incomplete


def _sent(
    session: Session,
    command: str,
    plan: Plan,
    folder: Path,
    say: Callable[[str], None],
    where: Where = Where(),  # noqa: B008 - frozen
    update: RollingUpdate | None = None,
    marks: Sequence[Mark] = (),
) -> Summary:
    """Send it while the machines are looked at; the record is judged, however far it came. Raises Refused.

    `marks` are of what is known beforehand, an update's are known afterwards.
    """
    described = header(session, plan, command)
    with sampling(session) as sampler, update.during() if update else nullcontext():
        try:
            run(plan, described, folder, say, where, update.begin if update else nothing)
        except Incomplete as error:
            say(f"ended early: {error}")
    first = begun(folder)
    second_0_s = first.began.timestamp() + time.monotonic() - time.time()
    trouble = f"the rolling update failed: {update.trouble}" if update and update.trouble else ""
    done = [*marks, *(update.marks(second_0_s) if update else ())]
    add(folder, [*done, *sampler.since(second_0_s)], trouble)
    said = report.write(folder)
    if left_by(plan):
        _clear(session, say)
    return said


def _clear(session: Session, say: Callable[[str], None]) -> None:
    """What load left; where that fails the result stands, and the next run clears it."""
    try:
        sweep(session)
    except (ActionFailed, OSError) as error:
        say(f"what this run left on the target could not be cleared, and the next run will: {said_of(error)}")


def _search(session: Session, order: Order, trials: Trials, start: float, seed: int) -> None:
    for condition in CONDITIONS if order.chaos else (WELL,):
        with under(session, order.env, condition, seed):
            trials.search(condition, start)


def _ended_early(work: Callable[[], None]) -> str:
    """Why it did; empty where it came to its end."""
    try:
        work()
    except (Void, *REFUSALS) as error:
        return said_of(error)
    except KeyboardInterrupt:
        return BY_HAND
    return ""
