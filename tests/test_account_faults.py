"""Cloudflare's API slow, away, cut off or something else: reads are repeated, creations are not, errors are clear."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cloudflare
import pytest

import provisioning.account
from environments.load import find, load
from environments.model import Environment
from provisioning.account import RETRIES, Account, Policy, Record, Tunnel
from provisioning.action import ActionFailed
from tests.unreliable import SILENCE, Says, Unreliable, serving

INFO = {"page": 1, "per_page": 20, "count": 1, "total_count": 1}
TUNNEL: dict[str, Any] = {"id": "f70ff985-a4ef-4643-bbbc-4a0ed4fc8415", "name": "haproof-lab", "connections": []}
HELD = Record("023e105f4ecef8ad9ca31a8372d0c353", "CNAME", "x.cfargotunnel.com", proxied=True)
Ask = Callable[..., tuple[Account, Unreliable]]


def told(result: object) -> Says:
    return Says({"success": True, "errors": [], "messages": [], "result": result, "result_info": INFO})


def refused(status: int, message: str = "busy") -> Says:
    errors = [{"code": 1000, "message": message}]
    return Says({"success": False, "errors": errors}, status, headers={"retry-after-ms": "10"})


EMPTY = told([])
PASSING = {"429": refused(429), "503": refused(503), "cut off": SILENCE, "slow": Says(late=True)}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """The lab's, with a token that is there."""
    (tmp_path / "token").write_text("not-a-real-token")
    described = load(find("lab"))
    edge = described.edge.model_dump() | {"ca": None, "api_token": f"file:{tmp_path}/token"}
    return described.model_copy(update={"edge": type(described.edge).model_validate(edge)})


@pytest.fixture
def asked(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Makes an account whose API says what it is told to; nobody waits long."""
    monkeypatch.setattr(cloudflare._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(cloudflare._base_client, "MAX_RETRY_DELAY", 0.01)
    for name, value in {"TIMEOUT_S": 0.5, "TOO_MANY_S": 0.5, "TOO_MANY_PAUSE_S": 0.05}.items():
        monkeypatch.setattr(provisioning.account, name, value)
    with ExitStack() as stack:

        def ask(*script: Says) -> tuple[Account, Unreliable]:
            server = stack.enter_context(serving(*script))
            edge = environment.edge.model_copy(update={"api_url": f"http://{server.address}/client/v4"})
            return Account(environment.model_copy(update={"edge": edge})), server

        yield ask


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_is_read_is_asked_for_again(asked: Ask, fault: Says) -> None:
    account, server = asked(fault, fault, told([TUNNEL]), EMPTY)
    assert account.tunnel() == Tunnel(TUNNEL["id"], "haproof-lab", connected=False)
    assert len(server.asked) >= 3


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_is_replaced_is_sent_again(asked: Ask, fault: Says) -> None:
    account, server = asked(fault, told({"id": HELD.id}))
    account.set_record(Tunnel("a", "a", connected=False), HELD)
    assert [line.split()[0] for line in server.asked] == ["PUT", "PUT"]


@pytest.mark.parametrize("name", ["503", "cut off", "slow"])
@pytest.mark.parametrize(
    "make",
    [
        lambda account: account.make_tunnel(),
        lambda account: account.set_record(Tunnel("a", "a", connected=False), None),
        lambda account: account.make_provider("onetimepin", "PIN", {}),
        lambda account: account.set_policy(Policy("a", "allow", ())),
    ],
    ids=["tunnel", "record", "provider", "policy"],
)
def test_what_may_have_been_made_is_not_made_twice(asked: Ask, name: str, make: Callable[[Account], object]) -> None:
    account, server = asked(PASSING[name], told({"id": "a"}))
    with pytest.raises(ActionFailed):
        make(account)
    assert len(server.asked) == 1


def test_too_many_requests_made_nothing_and_are_made_later(asked: Ask) -> None:
    account, server = asked(refused(429), refused(429), told({"id": "a"}))
    assert account.make_tunnel().id == "a"
    assert len(server.asked) == 3


def test_too_many_requests_for_long_are_one_clear_error(asked: Ask) -> None:
    account, _ = asked(refused(429, "10 requests allowed"))
    with pytest.raises(ActionFailed, match="too many requests of this account: 10 requests allowed"):
        account.make_tunnel()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (refused(503, "maintenance"), "Cloudflare refuses to list tunnels: 503 maintenance"),
        (SILENCE, "cannot be reached to list tunnels: .*; check this machine's way out, and edge.api_url"),
        (Says(late=True), "cannot be reached to list tunnels: .*timed out.*; check this machine's way out"),
    ],
    ids=["503", "cut off", "slow"],
)
def test_what_does_not_pass_is_one_clear_error(asked: Ask, fault: Says, words: str) -> None:
    account, server = asked(fault)
    with pytest.raises(ActionFailed, match=words) as raised:
        account.tunnels()
    assert len(server.asked) == 1 + RETRIES
    assert "command: GET /client/v4/accounts/" in str(raised.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_has_run_out_is_told_at_once_with_what_to_do(asked: Ask, status: int) -> None:
    account, server = asked(refused(status, "Invalid API Token"))
    with pytest.raises(ActionFailed, match=r"Invalid API Token; give the token of edge\.api_token .* has run out"):
        account.tunnels()
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b"{}", b'{"errors": null}', b'{"errors": 3}', b""])
def test_an_error_without_words_is_told_by_its_status(asked: Ask, body: bytes) -> None:
    account, _ = asked(Says(body, 400))
    with pytest.raises(ActionFailed, match="Cloudflare refuses to list tunnels: 400 Bad Request"):
        account.tunnels()


@pytest.mark.parametrize("result", [3, "x", [3], [None], [{}], [{"name": "haproof-lab"}], {"id": 1}])
def test_what_is_no_answer_of_cloudflare_is_told_as_such(asked: Ask, result: object) -> None:
    account, _ = asked(told(result), EMPTY)
    with pytest.raises(ActionFailed, match=r"in another way than it should to list tunnels \(.*\); check"):
        account.tunnels()


def test_an_authority_or_token_that_is_not_there_is_named(environment: Environment) -> None:
    for change in ({"ca": "/nowhere/ca.pem"}, {"api_token": "file:/nowhere/token"}):
        edge = type(environment.edge).model_validate(environment.edge.model_dump() | change)
        with pytest.raises(ActionFailed, match=r"edge.ca or edge.api_token cannot be used to list tunnels: .*"):
            Account(environment.model_copy(update={"edge": edge})).tunnels()
