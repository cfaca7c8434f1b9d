"""Interference: what one part's load does to another part that is said to be apart from it."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pymysql
import pytest
from pytest_bdd import then, when

from certificate.verdict import NotExercised
from chaos.fault import Struck, kind_named
from environments.model import Machine, Role
from provisioning.database import PORT
from provisioning.machines import in_parallel
from provisioning.session import Session
from steps.guests import Guests
from steps.nodes import in_container

QUESTIONS = 200
EXPIRES_S = 120.0
# A slower answer that nobody would notice is none: twice as long, and a few milliseconds of chance.
FACTOR_MAX, CHANCE_MS = 2.0, 5.0


@dataclass(frozen=True)
class Answers:
    """The median time of an answer, before and during another's load."""

    before_ms: float
    during_ms: float

    @property
    def complaint(self) -> str:
        """What is wrong; empty when nothing is. Pure."""
        most_ms = FACTOR_MAX * self.before_ms + CHANCE_MS
        told = f"expected answers within {most_ms:.1f} ms, twice the {self.before_ms:.1f} ms before"
        return "" if self.during_ms <= most_ms else f"{told}, found {self.during_ms:.1f} ms"


def median_ms(target: Session) -> float:
    """How long the SQL node takes to count the site's posts, over one connection; raises pymysql.Error."""
    site = target.environment.wordpress
    took_s = []
    with pymysql.connect(
        host=str(target.database.address),
        port=PORT,
        user=site.database_user,
        password=site.database_password.reveal(),
        database=site.database,
    ) as connection:
        for _ in range(QUESTIONS):
            began_s = time.monotonic()
            with connection.cursor() as cursor:
                cursor.execute("SELECT COUNT(*) FROM wp_posts")
                cursor.fetchall()
            took_s.append(time.monotonic() - began_s)
    return 1000 * statistics.median(took_s)


@pytest.fixture
def busy_workers(target: Session, guests: Guests) -> Iterator[tuple[Machine, ...]]:
    """The workers, whose processors are at rest again afterwards; raises NotExercised where others share them."""
    workers = target.environment.with_role(Role.WORKER)
    if shared := [name for name, contained in guests.ask(workers, in_container).items() if contained]:
        raise NotExercised(f"{', '.join(shared)} are containers, whose processors are the database's as well")
    yield workers
    kind = kind_named("processors busy")
    in_parallel(workers, lambda machine: kind.heal(target, machine))


@when("every processor of every worker is busy", target_fixture="answers")
def workers_busy(target: Session, busy_workers: tuple[Machine, ...]) -> Answers:
    """The database is asked before, and while they are."""
    kind = kind_named("processors busy")
    before_ms = median_ms(target)
    in_parallel(busy_workers, lambda machine: kind.inject(target, Struck(machine, expires_s=EXPIRES_S)))
    return Answers(before_ms, median_ms(target))


@then("the database answers as fast as before")
def as_fast(answers: Answers) -> None:
    """By the median of many answers."""
    assert not answers.complaint, answers.complaint
