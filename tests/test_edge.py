"""The emulated edge through its own three doors: by Cloudflare's library, by plain requests, by a connector."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import cloudflare
import httpx
import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from openapi_core import OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest, MockResponse

import provisioning.account
from lab.edge.access import PIN_LIFE_S, Logins, Signer, covers, destinations, duration_s, guardian, plain
from lab.edge.frames import HEAD, pack, passed_on, unpack
from lab.edge.store import Store
from provisioning.access import Letters, Login
from provisioning.account import Account, Permission, Policy
from provisioning.action import Action, ActionFailed
from provisioning.edge import AccessDeclared, TunnelDeclared, claimed, ingress, people, suite
from provisioning.poll import NotYet, poll
from provisioning.public import Answer, PublicHost
from provisioning.state import State
from tests.live_edge import LiveEdge, Origin, live_edge

CONTRACT = Path(__file__).resolve().parents[2] / "shared/contracts/cloudflare-openapi-subset-20240806.json.gz"
HOST = "www.example.org"
ADMIN = "editor@example.org"


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[LiveEdge]:
    with live_edge(tmp_path / "lab") as running:
        yield running


@pytest.fixture
def account(edge: LiveEdge) -> Account:
    return Account(edge.environment)


@pytest.fixture
def state(tmp_path: Path) -> State:
    folder = tmp_path / "state"
    folder.mkdir()
    return State(folder)


def converge(*actions: Action) -> list[str]:
    """What a bring-up of `actions` changes."""
    changes: list[str] = []
    for action in actions:
        pending = list(action.pending())
        if pending:
            action.apply()
        changes += pending
    return changes


@pytest.fixture
def declared(account: Account, state: State) -> Account:
    converge(AccessDeclared(account, state), TunnelDeclared(account))
    return account


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
def site(edge: LiveEdge, declared: Account, origin: Origin) -> Iterator[LiveEdge]:
    """The public host, led through a connector to the origin."""
    tunnel = declared.tunnel()
    assert tunnel
    with origin.serving() as address:
        declared.set_ingress(tunnel, [(HOST, f"http://{address}"), ("", "http_status:404")])
        with edge.connector(declared.token(tunnel)):
            yield edge


# -- the account


def test_what_is_declared_is_declared_once(account: Account, state: State) -> None:
    actions = AccessDeclared(account, state), TunnelDeclared(account)
    assert len(converge(*actions)) == 9
    assert converge(*actions) == []
    tunnel = account.tunnel()
    assert tunnel
    assert account.ingress(tunnel) == ingress(account.environment)
    (record,) = account.records()
    assert (record.kind, record.content, record.proxied) == ("CNAME", tunnel.target, True)
    application = account.application("haproof-lab administration")
    assert application
    assert application.uris == (f"{HOST}/wp-admin", f"{HOST}/wp-login.php")
    assert state.service_token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda a: a.set_policy(Policy("haproof-lab people", "allow", ({"everyone": {}},), id_of(a))), "policy"),
        (lambda a: a.set_ingress(tunnel_of(a), [(HOST, "http://10.0.0.1"), ("", "http_status:404")]), "leads to"),
        (lambda a: a.make_service_token("haproof-lab suite") and None, ""),
    ],
    ids=["everyone", "elsewhere", "rotated"],
)
def test_what_was_changed_by_hand_is_put_right(
    declared: Account, state: State, spoil: Callable[[Account], object], found: str
) -> None:
    spoil(declared)
    actions = AccessDeclared(declared, state), TunnelDeclared(declared)
    changes = converge(*actions)
    assert all(found in change for change in changes[:1])
    assert bool(changes) is bool(found)
    assert converge(*actions) == []
    assert declared.policies()["haproof-lab people"].include == people(declared.environment).include


def tunnel_of(account: Account) -> provisioning.account.Tunnel:
    found = account.tunnel()
    assert found
    return found


def id_of(account: Account) -> str:
    return account.policies()["haproof-lab people"].id


def google_of(edge: LiveEdge, tmp_path: Path, client_id: str) -> Account:
    """The account of an environment whose people also log in by Google."""
    (tmp_path / "google").write_text("the client's secret")
    described = {"client_id": client_id, "client_secret": f"file:{tmp_path}/google"}
    return Account(edge.described(google=described, admin_emails=(), admin_domains=("example.org",)))


def test_google_and_a_domain_are_declared_beside_the_pin(edge: LiveEdge, state: State, tmp_path: Path) -> None:
    account = google_of(edge, tmp_path, "one")
    action = AccessDeclared(account, state)
    assert {"identity provider onetimepin", "identity provider google"} <= set(converge(action))
    assert converge(action) == []
    id_, client = account.google("haproof-lab Google") or ("", "")
    assert client == "one"
    application = account.application("haproof-lab administration")
    assert application
    assert application.providers == (account.providers()["onetimepin"], id_)
    assert account.policies()["haproof-lab people"].include == ({"email_domain": {"domain": "example.org"}},)
    (kept,) = [found for found in Store(edge.state / "edge").all("identity_providers") if found["type"] == "google"]
    assert kept["config"] == {"client_id": "one", "client_secret": "the client's secret"}


def test_another_client_of_google_takes_the_place_of_the_first(edge: LiveEdge, state: State, tmp_path: Path) -> None:
    converge(AccessDeclared(google_of(edge, tmp_path, "one"), state))
    account = google_of(edge, tmp_path, "another")
    first = account.google("haproof-lab Google")
    assert first
    assert converge(AccessDeclared(account, state)) == ["identity provider google"]
    assert account.google("haproof-lab Google") == (first[0], "another")
    assert converge(AccessDeclared(account, state)) == []


def test_somebody_elses_google_is_left_alone(edge: LiveEdge, state: State, tmp_path: Path) -> None:
    account = google_of(edge, tmp_path, "ours")
    theirs = account.make_provider("google", "Google", {"client_id": "theirs", "client_secret": "x"})
    action = AccessDeclared(account, state)
    converge(action)
    assert converge(action) == []
    assert account.google("Google") == (theirs, "theirs")
    application = account.application("haproof-lab administration")
    assert application
    assert theirs not in application.providers


@pytest.mark.parametrize(("address", "comes"), [("anybody@example.org", True), ("anybody@sub.example.org", False)])
def test_whoever_is_of_an_admitted_domain_gets_a_pin(
    edge: LiveEdge, state: State, tmp_path: Path, address: str, comes: bool
) -> None:
    account = google_of(edge, tmp_path, "one")
    converge(AccessDeclared(account, state), TunnelDeclared(account))
    assert (asked(edge, address)[1] is not None) is comes


def test_a_lost_service_token_is_made_anew(declared: Account, state: State) -> None:
    state.service_token.unlink()
    assert converge(AccessDeclared(declared, state)) == ["service token haproof-lab suite"]
    assert converge(AccessDeclared(declared, state)) == []


def test_a_host_of_another_tunnel_is_refused_and_nothing_changes(edge: LiveEdge, account: Account) -> None:
    other = Account(edge.environment.model_copy(update={"name": "other"}))
    converge(TunnelDeclared(other))
    with pytest.raises(ActionFailed, match=r"www.example.org already belongs to the tunnel haproof-other"):
        TunnelDeclared(account).pending()
    assert account.tunnel() is None


def test_a_host_with_an_address_of_its_own_is_refused(account: Account) -> None:
    record = provisioning.account.Record("1", "A", "203.0.113.9", proxied=False)
    with pytest.raises(ActionFailed, match=r"the record A 203.0.113.9; nothing was changed"):
        claimed(account.environment, [record], [])


def test_a_host_of_a_tunnel_that_is_gone_is_ours_to_take(account: Account) -> None:
    record = provisioning.account.Record("1", "CNAME", "gone.cfargotunnel.com", proxied=True)
    assert claimed(account.environment, [record], []) == record


@pytest.mark.parametrize(
    ("scopes", "denied"),
    [("dns access", Permission.TUNNEL), ("tunnel access", Permission.DNS), ("tunnel dns", Permission.ACCESS)],
)
def test_a_token_without_a_scope_is_told_which_one(
    edge: LiveEdge, state: State, tmp_path: Path, scopes: str, denied: Permission
) -> None:
    (edge.state / "edge/tokens").write_text(f"narrow {scopes}\n")
    (tmp_path / "narrow").write_text("narrow")
    account = Account(edge.described(api_token=f"file:{tmp_path}/narrow"))
    with pytest.raises(ActionFailed, match=re.escape(f"the permission “{denied.value}”")) as raised:
        converge(AccessDeclared(account, state), TunnelDeclared(account))
    assert "narrow" not in str(raised.value)


@pytest.mark.parametrize("trouble", ["429", "503", "cut"])
def test_passing_trouble_of_the_api_is_waited_out_and_lasting_trouble_told(
    edge: LiveEdge, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    answers: list[int] = []

    def client(failures: int) -> Callable[..., httpx.Client]:
        def handle(request: httpx.Request) -> httpx.Response:
            answers.append(len(answers))
            if len(answers) > failures:
                info = {"page": 1, "per_page": 20, "count": 0, "total_count": 0}
                told = {"success": True, "errors": [], "messages": [], "result": [], "result_info": info}
                return httpx.Response(200, json=told)
            if trouble == "cut":
                raise httpx.RemoteProtocolError("the connection was cut", request=request)
            return httpx.Response(int(trouble), json={"errors": [{"code": 1, "message": "busy"}]}, headers=HURRY)

        return lambda **_: httpx.Client(transport=httpx.MockTransport(handle))

    monkeypatch.setattr(cloudflare._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(cloudflare._base_client, "MAX_RETRY_DELAY", 0.01)
    monkeypatch.setattr(provisioning.account, "DefaultHttpxClient", client(2))
    assert Account(edge.environment).tunnels() == []
    assert len(answers) == 3
    answers.clear()
    monkeypatch.setattr(provisioning.account, "DefaultHttpxClient", client(100))
    with pytest.raises(ActionFailed, match="list tunnels") as raised:
        Account(edge.environment).tunnels()
    assert len(answers) == 1 + provisioning.account.RETRIES
    assert ("busy" in str(raised.value)) is (trouble != "cut")


HURRY = {"retry-after-ms": "10"}


def test_every_call_and_answer_keeps_to_cloudflares_own_schema(
    edge: LiveEdge, state: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not CONTRACT.exists():
        pytest.skip(f"Cloudflare's schema is not part of this repository and there is none at {CONTRACT}")
    exchanges: list[httpx.Response] = []

    def record(response: httpx.Response) -> None:
        response.read()
        exchanges.append(response)

    monkeypatch.setattr(
        provisioning.account,
        "DefaultHttpxClient",
        partial(cloudflare.DefaultHttpxClient, event_hooks={"response": [record]}),
    )
    strict = partial(cloudflare.Cloudflare, _strict_response_validation=True)
    monkeypatch.setattr(provisioning.account, "Cloudflare", strict)
    converge(AccessDeclared(google_of(edge, tmp_path, "one"), state))
    account = google_of(edge, tmp_path, "another")
    converge(AccessDeclared(account, state), TunnelDeclared(account))
    state.service_token.unlink()
    account.set_policy(Policy("haproof-lab people", "allow", ({"everyone": {}},), id_of(account)))
    account.set_record(tunnel_of(account), account.records()[0])
    assert account.token(tunnel_of(account))
    converge(AccessDeclared(account, state), TunnelDeclared(account))
    schema = OpenAPI.from_dict(json.loads(gzip.decompress(CONTRACT.read_bytes())))
    known = {(r.request.method, re.sub(r"[0-9a-f-]{32,36}", "ID", r.request.url.path)) for r in exchanges}
    assert len(known) >= 20
    faults = [fault for response in exchanges for fault in schema_faults(schema, response)]
    assert not faults, "\n".join(faults)


# Where the schema itself is untrue: ids in paths are marked read-only, and a record that is to be made must have been.
UNTRUE = ("Tried to write read-only property", "'created_on' is a required property")


def schema_faults(schema: OpenAPI, response: httpx.Response) -> list[str]:
    asked = response.request
    url = urlsplit(str(asked.url))
    request = MockRequest(
        "https://api.cloudflare.com",
        asked.method.lower(),
        url.path,
        args=dict(asked.url.params),
        headers={"Authorization": asked.headers["Authorization"]},
        data=asked.content or None,
        content_type=asked.headers.get("content-type", "application/json"),
    )
    answer = MockResponse(response.content, response.status_code, content_type="application/json")
    faults = []
    checks: dict[str, Callable[[], None]] = {
        "request": lambda: schema.validate_request(request),
        "response": lambda: schema.validate_response(request, answer),
    }
    for part, check in checks.items():
        try:
            check()
        except OpenAPIError as error:
            cause = getattr(error, "schema_errors", None) or error.__cause__ or error
            if not any(word in str(cause) for word in UNTRUE):
                faults.append(f"{asked.method} {url.path} {part}: {type(error).__name__}: {cause}"[:600])
    return faults


# -- the tunnel


def test_the_public_host_is_the_origin_behind_the_tunnel(site: LiveEdge, origin: Origin) -> None:
    answer = site.public.get("/a%20b?c=d", {"X-Forwarded-For": "1.2.3.4", "CF-Connecting-IP": "1.2.3.4", "X-Own": "1"})
    assert answer.status == 200
    asked = json.loads(answer.body)
    assert (asked["path"], asked["headers"]["host"]) == ("/a%20b?c=d", HOST)
    assert asked["headers"]["x-forwarded-proto"] == "https"
    assert asked["headers"]["cf-connecting-ip"] == asked["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert asked["headers"]["x-own"] == "1"
    assert answer.headers["set-cookie"] == ("one=1", "two=2")
    assert site.public.get("/missing").status == 404


def test_a_form_arrives_whole(site: LiveEdge) -> None:
    with site.public.session() as browser:
        answer = browser.post(f"https://{HOST}/form", data={"text": "x" * 300_000})
    assert len(answer.json()["body"]) == 300_005


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(site: LiveEdge) -> None:
    with pytest.raises(OSError, match=r"IncompleteRead|RemoteDisconnected"):
        site.public.get("/cut")
    assert site.public.get("/").status == 200


def test_many_are_served_at_a_time(site: LiveEdge) -> None:
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda path: site.public.get(path).status, ["/slow"] * 8 + ["/"] * 24))
    assert statuses == [200] * 32


def test_without_a_connector_the_host_says_so(edge: LiveEdge, declared: Account) -> None:
    assert declared.tunnel()
    answer = edge.public.get("/")
    assert (answer.status, "1033" in answer.text) == (530, True)


def test_an_unknown_host_and_an_unknown_name_of_the_tunnel_lead_nowhere(site: LiveEdge) -> None:
    other = PublicHost("other.example.org", "127.0.0.1", site.ca, site.public_port)
    assert other.get("/").status == 530


def test_visitors_come_through_a_proxy_where_there_is_one(site: LiveEdge, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = tmp_path / "proxy.conf"
    configuration.write_text(f"Listen 127.0.0.1\nPort {port}\nTimeout 30\nMaxClients 10\n")
    public = replace(site.public, proxy=f"http://127.0.0.1:{port}")
    with pytest.raises(OSError, match="refused"):
        public.get("/")
    with subprocess.Popen(["tinyproxy", "-d", "-c", configuration], stdout=subprocess.DEVNULL) as proxy:
        try:
            poll("the proxy", lambda: listens(port), timeout_s=10, interval_s=0.05)
            answer = public.get("/")
            page = public.session().get(f"https://{HOST}/", timeout=10)
        finally:
            proxy.terminate()
    assert (answer.status, page.status_code) == (200, 200)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError as error:
        raise NotYet(str(error)) from error
    return True


def test_a_revoked_token_ends_the_connector_with_its_reason(edge: LiveEdge, declared: Account) -> None:
    tunnel = tunnel_of(declared)
    token = declared.token(tunnel)
    renewed = {"tunnel_secret": "another"}
    told = requests.patch(
        f"{edge.environment.edge.api_url}/accounts/{declared.edge.account_id}/cfd_tunnel/{tunnel.id}",
        json=renewed,
        headers={"Authorization": f"Bearer {declared.edge.api_token.reveal()}"},
        verify=edge.ca,
        timeout=5,
    )
    assert told.status_code == 200
    with edge.connector(token) as connector:
        assert connector.wait(10) == 1
        assert connector.stdout
        assert "the tunnel's token is not valid" in connector.stdout.read()


def test_who_waits_for_the_origin_is_no_thread_of_the_connector(edge: LiveEdge, declared: Account) -> None:
    """Of many that are answered at once, threads would all be late; see `lab.edge.connector.serve`."""
    tunnel, visitors = tunnel_of(declared), 30
    with (
        socket.create_server(("127.0.0.1", 0), backlog=visitors) as origin,
        edge.connector(declared.token(tunnel)) as connector,
        ThreadPoolExecutor(visitors) as pool,
    ):
        origin.settimeout(20)
        declared.set_ingress(tunnel, [(HOST, f"http://127.0.0.1:{origin.getsockname()[1]}"), ("", "http_status:404")])
        answers = [pool.submit(edge.public.get, "/") for _ in range(visitors)]
        waiting = [origin.accept()[0] for _ in range(visitors)]
        threads = len(list(Path(f"/proc/{connector.pid}/task").iterdir()))
        for one in waiting:
            with one:
                one.recv(65536)
                one.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert {answer.result().status for answer in answers} == {204}
    assert threads == 1


def test_the_connector_says_what_it_is_and_asks_for_its_token() -> None:
    command = [sys.executable, "-m", "lab.edge.connector"]
    told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    assert "emulated" in told
    bare = {name: value for name, value in os.environ.items() if name != "TUNNEL_TOKEN"}
    done = subprocess.run([*command, "tunnel", "run"], capture_output=True, text=True, env=bare, check=False)
    assert (done.returncode, "TUNNEL_TOKEN" in done.stderr) == (2, True)


def test_frames_come_back_as_they_were_and_junk_is_refused() -> None:
    assert unpack(pack(7, HEAD, b"x")) == (7, HEAD, b"x")
    with pytest.raises(ValueError, match="too short"):
        unpack(b"x")
    assert passed_on([("Connection", "close, X-Own"), ("X-Own", "1"), ("X-Other", "2")]) == [("X-Other", "2")]


# -- Access: who is let in


def asked(site: LiveEdge, email: str = ADMIN) -> tuple[Login, str | None]:
    """Somebody who has asked for the administration and then for a PIN; the PIN, if one came."""
    mailbox = site.environment.edge.mailbox
    assert mailbox
    letters = Letters(mailbox, site.ca)
    login, before = Login(site.public), len(letters.to(email))
    login.begin("/wp-admin/?x=1")
    login.ask(email)
    return login, letters.pin(email, before, 0.3)


def logged_in(site: LiveEdge) -> str:
    """The session of somebody who has logged in."""
    login, pin = asked(site)
    assert pin
    session = login.enter(pin)
    assert session
    return session


def enter(site: LiveEdge, session: str, path: str = "/wp-admin/") -> Answer:
    return site.public.get(path, {"Cookie": f"CF_Authorization={session}"})


def test_the_way_to_the_login_is_as_the_service_words_it(site: LiveEdge) -> None:
    answer = site.public.get("/wp-admin/?x=1")
    where = urlsplit(answer.header("location"))
    assert (answer.status, where.hostname) == (302, "haproof.cloudflareaccess.com")
    assert where.path == f"/cdn-cgi/access/login/{HOST}"
    assert parse_qs(where.query)["redirect_url"] == ["/wp-admin/?x=1"]
    assert answer.header("www-authenticate").startswith("Cloudflare-Access")
    assert "no-store" in answer.header("cache-control")
    assert all(word in answer.header("set-cookie") for word in ("CF_AppSession", "Secure", "HttpOnly"))


def test_an_authorised_address_gets_in_and_the_origin_hears_who_it_is(site: LiveEdge) -> None:
    session = logged_in(site)
    answer = enter(site, session)
    assert answer.status == 200
    assertion = json.loads(answer.body)["headers"]["cf-access-jwt-assertion"]
    team_host = PublicHost("haproof.cloudflareaccess.com", "127.0.0.1", site.ca, site.public_port)
    keys = jwt.PyJWKSet.from_json(team_host.get("/cdn-cgi/access/certs").text)
    key = keys[jwt.get_unverified_header(assertion)["kid"]]
    application = Account(site.environment).application("haproof-lab administration")
    assert application
    claims = jwt.decode(assertion, key, ["RS256"], options={"verify_aud": False}, issuer=f"https://{team_host.name}")
    assert claims["email"] == ADMIN
    assert {"aud", "exp", "iat", "nbf", "iss", "type", "sub"} <= claims.keys()
    assert claims["exp"] - claims["iat"] == 24 * 3600
    identity = site.public.get("/cdn-cgi/access/get-identity", {"Cookie": f"CF_Authorization={session}"})
    assert json.loads(identity.body)["email"] == ADMIN


def test_an_unauthorised_address_gets_no_pin_and_cannot_tell(site: LiveEdge) -> None:
    (one, pin), (other, none) = asked(site), asked(site, "stranger@example.net")
    assert (bool(pin), none) == (True, None)
    assert other.page.status_code == one.page.status_code == 200
    nonce = re.compile(r'value="[^"]+"')
    assert nonce.sub("", other.page.text) == nonce.sub("", one.page.text)
    assert set(other.page.headers) == set(one.page.headers)


def test_wrong_used_and_guessed_pins_fail(site: LiveEdge) -> None:
    login, pin = asked(site)
    assert pin
    wrong = f"{(int(pin) + 1) % 10**6:06d}"
    assert login.enter(wrong) is None
    assert login.enter(pin)
    assert login.enter(pin) is None
    login, pin = asked(site)
    assert pin
    assert [login.enter(f"{(int(pin) + n) % 10**6:06d}") for n in (1, 2, 3)] == [None] * 3
    assert login.enter(pin) is None


def test_a_pin_and_a_proof_have_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logins = Logins()
    word, pin = logins.begin("aud", HOST, "/", ADMIN, admitted=True)
    assert pin
    late_s = time.monotonic() + PIN_LIFE_S + 1
    with monkeypatch.context() as later:
        later.setattr("lab.edge.access.time.monotonic", lambda: late_s)
        assert logins.prove(word, pin) is None
    proof = logins.prove(word, pin)
    assert proof
    assert logins.redeem(proof, "other.example.org") is None
    assert logins.redeem(proof, HOST)
    assert logins.redeem(proof, HOST) is None


def test_a_pin_that_has_grown_old_is_refused_and_others_are_not(site: LiveEdge) -> None:
    """By the mailbox's own way to let ten minutes pass."""
    mailbox = site.environment.edge.mailbox
    assert mailbox
    letters = Letters(mailbox, site.ca)
    for older_s, accepted in ((PIN_LIFE_S - 60, True), (PIN_LIFE_S, False)):
        login, pin = asked(site)
        assert pin
        letters.age("another@example.org", PIN_LIFE_S)
        letters.age(ADMIN, older_s)
        assert bool(login.enter(pin)) is accepted


def test_a_login_leads_to_its_own_host_only(site: LiveEdge) -> None:
    login = Login(site.public)
    login.begin("/wp-admin/")
    where = login.page.url.replace("redirect_url=%2Fwp-admin%2F", "redirect_url=%2F%2Fevil.example.net%2F")
    assert where != login.page.url
    login.page = login.browser.get(where)
    mailbox = site.environment.edge.mailbox
    assert mailbox
    letters = Letters(mailbox, site.ca)
    login.ask(ADMIN)
    pin = letters.pin(ADMIN, 0, 1)
    assert pin
    reply = login.give("text", pin)
    back = login.browser.get(reply.headers["Location"], allow_redirects=False)
    assert back.headers["Location"] == "/evil.example.net/"


def test_a_session_of_another_application_or_of_yesterday_does_not_open(site: LiveEdge) -> None:
    signer = Signer(Store(site.state / "edge").key, "https://haproof.cloudflareaccess.com")
    own = Store(site.state / "edge").all("apps")[0]
    claims = {"email": ADMIN, "sub": "x"}
    assert enter(site, signer.sign(own, claims)).status == 200
    assert enter(site, signer.sign({**own, "aud": "another"}, claims)).status == 302
    assert enter(site, signer.sign(own, {**claims, "exp": int(time.time()) - 1})).status == 302
    assert enter(site, signer.sign(own, {**claims, "iss": "https://other.cloudflareaccess.com"})).status == 302
    assert enter(site, signer.sign(own, {**claims, "email": "stranger@example.net"})).status == 302


def test_tokens_that_are_not_ours_do_not_open(site: LiveEdge) -> None:
    session = logged_in(site)
    claims = jwt.decode(session, options={"verify_signature": False})
    header = jwt.get_unverified_header(session)
    stranger = rsa.generate_private_key(65537, 2048)
    forged = jwt.encode(claims, stranger, "RS256", headers={"kid": header["kid"]})
    unsigned = jwt.encode(claims, "", "none")
    confused = jwt.api_jws.PyJWS().encode(
        json.dumps(claims).encode(), "x" * 32, "HS256", headers={"kid": header["kid"]}
    )
    body = session.split(".")
    altered = ".".join([body[0], body[1][:-4] + ("AAAA" if body[1][-4:] != "AAAA" else "BBBB"), body[2]])
    for name, bad in {"forged": forged, "none": unsigned, "hs256": confused, "altered": altered, "junk": "x"}.items():
        assert enter(site, bad).status == 302, name
    assert enter(site, session).status == 200


def test_who_is_no_longer_listed_is_no_longer_let_in(site: LiveEdge, declared: Account) -> None:
    session = logged_in(site)
    nobody = Policy("haproof-lab people", "allow", ({"email": {"email": "another@example.org"}},), id_of(declared))
    declared.set_policy(nobody)
    assert enter(site, session).status == 302


def test_a_service_token_gets_in_a_wrong_one_does_not_and_a_strange_one_is_forbidden(
    site: LiveEdge, declared: Account, state: State
) -> None:
    token = provisioning.account.ServiceToken.kept(state.service_token)
    assert token
    assert token.client_secret not in repr(token)
    assert site.public.get("/wp-admin/", token.headers).status == 200
    assert site.public.get("/wp-admin/", {**token.headers, "CF-Access-Client-Secret": "x"}).status == 401
    stranger = declared.make_service_token("stranger")
    assert site.public.get("/wp-admin/", stranger.headers).status == 403
    asked = json.loads(site.public.get("/", token.headers).body)
    assert not {"cf-access-client-id", "cf-access-client-secret"} & asked["headers"].keys()


# -- Access: what is guarded


SPELLINGS = [
    "/wp-admin",
    "/wp-admin/",
    "/wp-admin/index.php",
    "/wp-admin/admin-ajax.php",
    "/WP-ADMIN/",
    "/wp-login.php",
    "/wp-login.php/",
    "/wp-login.php/x",
    "/Wp-Login.PHP",
    "//wp-admin/",
    "/./wp-admin/",
    "/x/../wp-admin/",
    "/x/%2e%2e/wp-admin/",
    "/%77p-admin/",
    "/%2577p-admin/",
    "/wp-admin%2f",
    "/wp-admin;x/",
    "/\\wp-admin/",
    "/wp-admin%20/",
    "/wp-login.php%00",
    "/wp-login.php.",
    "/wp-login.php?x=/",
    "/ /wp-admin/",
    "/.../wp-admin/",
    "/x/.. /wp-admin/",
]


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_guarded_path_gets_by(path: str) -> None:
    app = {"destinations": [{"type": "public", "uri": f"{HOST}/{guarded}"} for guarded in ("wp-admin", "wp-login.php")]}
    assert guardian([app], HOST, path) is app
    assert guardian([app], HOST.upper(), path) is app


@pytest.mark.parametrize("path", ["/", "/index.php", "/wp-administrator", "/wp-content/wp-admin.css", "/wp-login"])
def test_the_rest_of_the_site_is_not_guarded(path: str) -> None:
    app = {"destinations": [{"type": "public", "uri": f"{HOST}/{guarded}"} for guarded in ("wp-admin", "wp-login.php")]}
    assert guardian([app], HOST, path) is None
    assert guardian([app], "other.example.org", "/wp-admin") is None


def test_the_most_specific_application_wins_and_a_star_is_below_only() -> None:
    wide = {"domain": f"{HOST}/wp-admin"}
    narrow = {"domain": f"{HOST}/wp-admin/css/*"}
    assert guardian([wide, narrow], HOST, "/wp-admin/css/x") is narrow
    assert guardian([wide, narrow], HOST, "/wp-admin/css") is wide
    assert guardian([{"domain": f"{HOST}/alpha/*"}], HOST, "/alpha") is None
    assert destinations({"domain": HOST}) == [(HOST, "/")]
    assert guardian([{"domain": HOST}], HOST, "/anything")


@given(st.text(alphabet="/.%25eEfF2wp-admin;\\ ", max_size=24))
def test_a_plain_path_is_plain_already(path: str) -> None:
    once = plain(path)
    assert once.startswith("/")
    assert ".." not in once.split("/")
    assert covers(once, once) or once == "/"


@pytest.mark.parametrize("text", ["24", "1d", "", "-1h", "1h30m"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        duration_s(text)


def test_the_policies_name_who_is_named(account: Account) -> None:
    assert people(account.environment).include == ({"email": {"email": ADMIN}},)
    assert suite(account.environment, "x").decision == "non_identity"
