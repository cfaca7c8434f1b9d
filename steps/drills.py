"""Drills: the target is broken on purpose while visitors and editors are at work, and what that cost is judged.

They run only where the environment permits chaos and its name is repeated on the command line (`--chaos NAME`).
"""

import random
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from pytest_bdd import given, then, when

from certificate.plugin import FOUND_BY
from certificate.verdict import Finding, NotExercised, Verdict
from chaos.drill import Run, repeating
from chaos.drills import API, DATA, DRILLS, PAGES, VISITORS, WRITES, Drill
from chaos.healer import heal_now, watched_over
from chaos.history import History
from chaos.journal import HealFailed
from chaos.judgement import Judgement
from chaos.permission import refusal
from chaos.report import as_text, write
from environments.load import EnvironmentInvalid
from provisioning.hypervisor import HypervisorError
from provisioning.session import ProviderError, Session, open_session
from provisioning.state import Busy

FILES = ("nfs", "nfs/read", "nfs/write")


class Unjudged(Exception):
    """A drill said nothing of what is asked: why."""


@dataclass(frozen=True)
class Drills:
    """Runs drills against the target; each leaves its evidence in a folder of its own."""

    target: Session
    healer: "subprocess.Popen[str]"
    env: str
    seed: int
    folder: Path
    kept: Callable[[Path], None]
    say: Callable[[str], None]

    def run(self, drill: Drill) -> Judgement:
        """What the drill showed; raises NotExercised and what `chaos.drill.Run` raises.

        After a Ctrl-C it is healed and judged, and KeyboardInterrupt is raised then: pytest would begin the next one.
        """
        environment = self.target.environment
        folder = self.folder / "drills" / drill.name
        self.kept(folder)
        again = repeating("run", drill.name, env=self.env, chaos=environment.name, seed=self.seed)
        running = Run(self.target, self.healer, drill, self.seed, folder, again, self.say)
        running.run()
        said = write(folder)
        for line in as_text(History.read(folder), said).splitlines():
            self.say(line)
        if running.interrupted:
            raise KeyboardInterrupt(f"during the drill {drill.name}, which was healed and judged")
        return said


def pytest_addoption(parser: pytest.Parser) -> None:
    """What may be broken, and how much of it."""
    group = parser.getgroup("haproof", "target")
    group.addoption("--chaos", default="", metavar="NAME", help="the environment's name: yes, break that one in drills")
    group.addoption("--heal", action="store_true", help="take back what a drill left broken, and end")
    group.addoption("--drills", type=int, metavar="N", help="run N of the drills, picked at random (default: all)")
    group.addoption("--seed", type=int, metavar="N", help="what is picked at random, drills and whom they strike")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """With --heal, heal in place of a run: 0 when nothing is left broken, 2 when that cannot be said."""
    if not config.option.heal:
        return None
    try:
        sys.stdout.write(heal_now(open_session(config.option.env)))
    except (Busy, EnvironmentInvalid, HealFailed, HypervisorError, ProviderError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def pytest_configure(config: pytest.Config) -> None:
    """Settle the seed, so that a run can be repeated."""
    if config.option.seed is None:
        config.option.seed = secrets.randbelow(10**6)


def pytest_report_header(config: pytest.Config) -> str:
    """The seed, and how to use it."""
    return f"drills: --seed {config.option.seed}" if config.option.chaos else "drills: none without --chaos NAME"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the drills that markers and names left, keep as many as are wanted."""
    drills = [item for item in items if item.get_closest_marker("drill")]
    wanted = config.option.drills
    if wanted is not None and wanted < len(drills):
        kept = random.Random(config.option.seed).sample(drills, wanted)
        left = [item for item in drills if item not in kept]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


@given("visitors and editors at work", target_fixture="drills")
def at_work(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, say: Callable[[str], None]
) -> Iterator[Drills]:
    """The drill itself sends them, and begins when everybody is at work."""
    named = pytestconfig.option.chaos
    if not named:
        raise NotExercised("drills break the target; permit it with --chaos and the environment's name")
    target: Session = request.getfixturevalue("target")
    if why := refusal(target.environment, named):
        raise NotExercised(why)
    with watched_over(pytestconfig.option.env) as healer:
        folder: Path = request.getfixturevalue("evidence_folder")
        kept = partial(_kept, request.node)
        option = pytestconfig.option
        yield Drills(target, healer, option.env, option.seed, folder, kept, lambda line: say(f"  {line}"))


def _kept(scenario: pytest.Item, folder: Path) -> None:
    """What a drill leaves is its scenario's evidence."""
    scenario.user_properties.append((FOUND_BY, str(folder)))


def _defined(drill: Drill) -> None:
    """The step that runs a drill, as if it were written out in this module."""

    @when(drill.does, target_fixture="judgement", stacklevel=2)
    def run(drills: Drills) -> Judgement:
        """A drill of that name, whole: from a steady target to a whole one."""
        return drills.run(drill)


for _drill in DRILLS.values():
    _defined(_drill)


def require(finding: Finding, course: Sequence[Finding] = ()) -> None:
    """Proven is silent; refuted is an assertion's, and anything else is no verdict: raises Unjudged.

    What is wrong with the drill's `course` is told first: a drill that ended early is why the rest is not known.
    """
    if finding.verdict is Verdict.REFUTED:
        raise AssertionError(finding.reason)
    if finding.verdict is not Verdict.PROVEN:
        for told in course:
            require(told)
        raise Unjudged(finding.reason)


def within(judgement: Judgement, layers: tuple[str, ...], *, at_all: bool = True) -> None:
    """Each of the layers was judged by a budget and kept to it; not `at_all`: it was never away.

    Raises Unjudged where the drill has no budget for one of them: what nothing is asked of, nothing is proven of.
    """
    judged = {layer.layer: layer for layer in judgement.layers if layer.allowed}
    if missing := [name for name in layers if name not in judged]:
        raise Unjudged(f"the drill has no budget for {', '.join(missing)}")
    for layer in (judged[name] for name in layers):
        assert layer.allowed is not None
        if not at_all and (layer.allowed.seconds or layer.allowed.back_s):
            raise Unjudged(f"{layer.layer} may be away in this drill: {layer.allowed.formula}")
        require(layer.finding, judgement.course)


@then("visitors are served again within the time that the target's timers allow")
def visitors_within(judgement: Judgement) -> None:
    """Inside and outside."""
    within(judgement, VISITORS)


@then("visitors notice nothing")
def visitors_throughout(judgement: Judgement) -> None:
    """Inside and outside."""
    within(judgement, VISITORS, at_all=False)


@then("the virtual address is there throughout")
def address_throughout(judgement: Judgement) -> None:
    """Inside only."""
    within(judgement, ("vip", "page/vip"), at_all=False)


@then("the public host is there again within the time that the target's timers allow")
def public_within(judgement: Judgement) -> None:
    """Outside only."""
    within(judgement, ("public", "page/public"))


@then("the data are there again within the time that the target's timers allow")
def data_within(judgement: Judgement) -> None:
    """To be read and to be written."""
    within(judgement, (*DATA, "write/post"))


@then("the data are there throughout")
def data_throughout(judgement: Judgement) -> None:
    """To be read and to be written."""
    within(judgement, DATA, at_all=False)


@then("the data are away until it is back")
@then("the data are away until both are back")
def data_away(judgement: Judgement) -> None:
    """The limit, as it truly behaves: away all the time, and back on time."""
    within(judgement, DATA)
    away(judgement, ("write/row",))


@then("visitors are away until it is back")
@then("visitors are away until both are back")
def visitors_away(judgement: Judgement) -> None:
    """Of the site's pages, that is: the limit, as it truly behaves."""
    within(judgement, PAGES)
    away(judgement, PAGES)


@then("the files are there again within the time that the target's timers allow")
def files_within(judgement: Judgement) -> None:
    """To be read and to be written, by replicas and by editors."""
    within(judgement, (*FILES, "write/upload"))


@then("the Kubernetes API is away until the master is back")
def api_away(judgement: Judgement) -> None:
    """The limit, as it truly behaves: away all the time, and back on time."""
    within(judgement, API)
    away(judgement, ("api/write",))


def away(judgement: Judgement, layers: tuple[str, ...]) -> None:
    """Each of the layers failed everybody when the last fault was healed: had it come back before, it were no limit."""
    healed_s = max(strike.heal_s for strike in judgement.strikes if strike.heal_s is not None)
    outages = {layer.layer: layer.outages for layer in judgement.layers}
    for name in layers:
        lasting = [o for o in outages[name] if o.total and o.began_s < healed_s and not _over(o.ended_s, healed_s)]
        assert lasting, f"expected {name} to be away until the heal, and it was back before"


def _over(ended_s: float | None, at_s: float) -> bool:
    return ended_s is not None and ended_s < at_s


@then("no acknowledged write is lost, doubled or changed")
def writes_kept(judgement: Judgement) -> None:
    """Rows, posts and files: each sort was written, and what was acknowledged is there once, as it was written."""
    kept(judgement, WRITES)


@then("nothing is lost but what the database's last checkpoint did not hold yet")
def checkpoint_kept(judgement: Judgement) -> None:
    """Where all that hold the data go at once, rows and posts younger than that are gone: the limit, as it is."""
    if not judgement.loss_window_s:
        raise Unjudged("nothing may be lost in this drill")
    kept(judgement, WRITES, judgement.loss_window_s)


def kept(judgement: Judgement, layers: tuple[str, ...], window_s: float = 0.0) -> None:
    """What the ledger says of each sort; raises Unjudged where it says nothing."""
    if judgement.loss_window_s != window_s:
        raise Unjudged(f"what is younger than {judgement.loss_window_s:g} s may be lost in this drill")
    sorts = {account.sort: account for account in judgement.writes}
    for layer in layers:
        sort = layer.removeprefix("write/")
        if sort not in sorts:
            raise Unjudged(f"no write ({sort}) was tried")
        require(sorts[sort].finding, judgement.course)


@then("the target is whole again by itself")
def whole_again(judgement: Judgement) -> None:
    """Nothing but the fault was taken back; the drill came to its end, and what was broken was broken and healed."""
    for finding in judgement.course:
        require(finding)
    if judgement.redundant_s is None:
        raise Unjudged("the drill did not come to a whole target")
