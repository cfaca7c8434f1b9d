"""Schedules: faults one over another, picked by a seed; a failing one is made as short as it still fails. Pure."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from chaos.drills import CHECKPOINT_S, DATA, JOIN_S, RECOVERY_S, VISITORS, Blow, Drill, Moment
from chaos.fault import KINDS
from chaos.target import Facts, NoSuchTarget, select
from chaos.timers import Budget, machine_back, node_back
from environments.model import Role

HOLD_MIN_S, HOLD_MAX_S = 5.0, 30.0
TRIES = 100
# What may be done to whom at any time. Power of a whole layer is a drill's: here, several machines may go at once.
POOL: Sequence[tuple[str, str]] = (
    ("power cut", "master"),
    ("power cut", "worker"),
    ("power cut", "SQL node"),
    ("power cut", "data node"),
    ("power cut", "management node"),
    ("power cut", "connector"),
    ("power cut", "file server"),
    ("hang", "data node"),
    ("hang", "worker"),
    ("network down", "worker"),
    ("partition", "data node"),
    ("kubelet stopped", "worker"),
    ("containerd stopped", "worker"),
    ("ndbmtd killed", "data node"),
    ("connector killed", "connector"),
    ("packet loss", "worker"),
    ("replica deleted", "worker with a replica"),
)


def schedule(facts: Facts, seed: int, blows: int, duration_s: float, down_max: int) -> Drill:
    """So many blows within so many seconds, never two on one machine at once, nor more machines down than `down_max`.

    The same for the same facts and arguments. Fewer blows, where no more find a place.
    """
    dice, found = random.Random(seed), list[Blow]()
    for _ in range(TRIES):
        if len(found) == blows:
            break
        fault, words = dice.choice(POOL)
        hold_s = round(dice.uniform(HOLD_MIN_S, min(HOLD_MAX_S, duration_s)), 1)
        after_s = round(dice.uniform(0, max(0.0, duration_s - hold_s)), 1)
        try:
            (machine,) = select(words, facts, dice.randrange(10**6))
        except NoSuchTarget:
            continue
        blow = Blow(fault, machine.name, hold_s, after_s, peers=words if fault == "partition" else "")
        if _fits(blow, found, facts, down_max):
            found.append(blow)
    return as_drill(found, seed, holding(facts))


def holding(facts: Facts) -> frozenset[str]:
    """The machines whose loss, of several at once, may cost data: that hold them, or arbitrate. Pure."""
    return frozenset(machine.name for machine in facts.with_role(Role.NDB_DATA, Role.NDB_MANAGEMENT))


def as_drill(blows: Sequence[Blow], seed: int, data: Collection[str] = ()) -> Drill:
    """The drill of a schedule: when all is healed, all is back as after a cold start, and nothing is lost.

    But what is younger than a checkpoint, where several of those that hold the `data` are struck at once.
    """

    def takes(blow: Blow) -> bool:
        return blow.target in data and any(
            other is not blow and other.target in data and _overlap(blow, other) for other in blows
        )

    marked = [replace(blow, takes_data=takes(blow)) for blow in blows]
    ordered = tuple(sorted(marked, key=lambda blow: (blow.after_s, blow.target)))
    told = "; ".join(f"{b.fault} of {b.target} at {b.after_s:g} s for {b.hold_s:g} s" for b in ordered)
    return Drill(f"schedule-{seed}", told, ordered, _budgets, loss_window_s=CHECKPOINT_S)


def shrunk(blows: Sequence[Blow], fails: Callable[[Sequence[Blow]], bool]) -> tuple[Blow, ...]:
    """The shortest form of a failing schedule that `fails` still: blows taken away one at a time, then held for less.

    Every one of what is left is needed, and none held half as long (nor below `HOLD_MIN_S`) is enough.
    """
    left = tuple(blows)
    for blow in blows:
        without = tuple(other for other in left if other is not blow)
        if without and fails(without):
            left = without
    for at, blow in enumerate(left):
        shorter_s = max(HOLD_MIN_S, round(blow.hold_s / 2, 1))
        while shorter_s < left[at].hold_s:
            with_shorter = (*left[:at], replace(blow, hold_s=shorter_s), *left[at + 1 :])
            if not fails(with_shorter):
                break
            left, shorter_s = with_shorter, max(HOLD_MIN_S, round(shorter_s / 2, 1))
    return left


def _fits(blow: Blow, others: Sequence[Blow], facts: Facts, down_max: int) -> bool:
    meanwhile = [other for other in others if _overlap(blow, other)]
    down = sum(KINDS[one.fault].takes_down for one in (blow, *meanwhile))
    return not any(_touched(blow, facts) & _touched(other, facts) for other in meanwhile) and down <= down_max


def _touched(blow: Blow, facts: Facts) -> set[str]:
    """Whom it strikes, and whom it cuts off from: both sides are to be healed."""
    peers = select(blow.peers, facts, 0, -1) if blow.peers else ()
    return {blow.target, *(machine.name for machine in peers)}


def _overlap(one: Blow, other: Blow) -> bool:
    # A machine that has just been healed is not struck again before it had a moment to come back.
    rest_s = HOLD_MIN_S
    return one.after_s < other.after_s + other.hold_s + rest_s and other.after_s < one.after_s + one.hold_s + rest_s


def _budgets(moment: Moment) -> dict[str, Budget]:
    back = machine_back(
        moment.live, moment.hold_s, recovery_of_the_database=RECOVERY_S, joining=JOIN_S, **node_back(moment.live)
    )
    return dict.fromkeys((*VISITORS, *DATA), back)
