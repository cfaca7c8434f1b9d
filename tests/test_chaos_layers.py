"""What layers are asked, and how what was written is found again."""

from types import SimpleNamespace
from typing import cast

import pytest

from chaos import facts
from chaos.drills import PAGES, VISITORS
from chaos.layers import FRONT_PAGE, PATH, visitors
from chaos.ledger import Ledger, files
from environments.model import Machine
from provisioning.cluster import Cluster
from provisioning.session import Session
from provisioning.ssh import Shell
from steps.pods import Output
from tests.test_chaos_fault import ENVIRONMENT, Powers

MARK = "haproof-drill-7-"
DIGEST = "0" * 64


def test_visitors_are_told_by_an_answer_and_by_whole_pages_that_need_the_database() -> None:
    edge = ENVIRONMENT.edge.model_copy(update={"ca": None})
    asked = {question.layer: question for question in visitors(ENVIRONMENT.model_copy(update={"edge": edge}))}
    assert set(asked) == set(VISITORS)
    assert {layer for layer, question in asked.items() if question.path == FRONT_PAGE} == set(PAGES)
    assert {question.path for layer, question in asked.items() if layer not in PAGES} == {PATH}
    # Each page takes a processor for 60 ms.
    assert sum(0.06 / question.interval_s for layer, question in asked.items() if layer in PAGES) < 0.2
    assert {question.host for question in asked.values()} == {str(ENVIRONMENT.wordpress.vip), str(edge.resolve)}


def test_half_an_answer_of_a_part_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a Pod that is being stopped: whoever watches goes on watching."""
    monkeypatch.setattr(facts, "execute", lambda *_: Output("", "", 1))
    monkeypatch.setattr(facts, "who_has", lambda *_: set())
    session = SimpleNamespace(environment=ENVIRONMENT, hypervisor=Powers(), shell=None)
    live = facts.Live(cast(Session, session), cast(Cluster, SimpleNamespace(core=None)))
    assert live.owners() == {"announcer": "nobody", "etcd leader": "no answer: JSONDecodeError"}


def test_a_drill_is_told_of_half_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is broken: it is refused, and has not come to an end that would pass for a verdict."""
    monkeypatch.setattr(facts, "execute", lambda *_: Output("", "", 1))
    monkeypatch.setattr(facts, "who_has", lambda *_: set())
    monkeypatch.setattr(facts, "site_pods", lambda _: [])
    database = SimpleNamespace(query=lambda _: [])
    session = SimpleNamespace(
        environment=ENVIRONMENT, hypervisor=Powers(), shell=None, database=database, ndb=SimpleNamespace(members=[])
    )
    live = facts.Live(cast(Session, session), cast(Cluster, SimpleNamespace(core=None)))
    with pytest.raises(facts.Unreadable, match="JSONDecodeError"):
        live.facts()


def test_an_upload_that_was_made_twice_is_found_twice() -> None:
    """WordPress gives a name that is taken a number; other sizes of an image are no uploads of their own."""

    def check(machine: Machine, script: str) -> str:
        folder = f"{DIGEST}  /mnt/shared/wordpress/wp-content/uploads/2026/11/{MARK}"
        return "".join(f"{folder}{name}.png\n" for name in ("abc", "abc-1", "def", "def-1x1"))

    found = files(ENVIRONMENT, cast(Shell, SimpleNamespace(check=check)), MARK)
    assert [(item.sort, item.name) for item in found] == [("upload", "abc"), ("upload", "abc"), ("upload", "def")]


def test_a_row_that_is_written_twice_is_kept_twice() -> None:
    said: list[str] = []
    database = SimpleNamespace(site=ENVIRONMENT.wordpress, query=said.append)
    fake = SimpleNamespace(database=database, shell=None, environment=ENVIRONMENT)
    Ledger(cast(Session, fake), "7").make()
    assert "KEY (name)" in said[0]
    assert not {"PRIMARY", "UNIQUE"} & set(said[0].split())
