"""Whatever is read from outside is understood, or refused in one clear error of its own: never a traceback.

Derandomised: the same examples in every run. What is mutated is a whole one of its kind: most of it stays right.
"""

import base64
import copy
import json
import math
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from certificate.attestation import FILE, NotSigned, Verification, sign, verify
from certificate.evidence import write
from certificate.record import Record, Unreadable
from chaos.history import History, HistoryError
from chaos.judgement import Judgement, judge
from environments.load import EnvironmentInvalid, find, load
from environments.model import Edge, Environment
from provisioning import account
from provisioning.account import Account, Policy, Tunnel
from provisioning.action import ActionFailed
from provisioning.hypervisor import Hypervisor, HypervisorError, Patience, Vm
from tests.test_certificate import new_key, record

FUZZ = settings(
    derandomize=True,
    database=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
ENVIRONMENT = load(find("lab"))
LAB = tomllib.loads(find("lab").read_text())
# What programs stumble over: wrong types, empty and huge ones, and texts that mean something to somebody.
ODD: list[Any] = [
    *(None, True, False, 0, -1, 2**63, 1e308, math.inf, math.nan, "", " ", "\0", "ü", "x" * 5000, "0.0.0.0", "::1"),
    *("999.1.1.1", "172.31.0.0/33", "1-", "172.31.0.9-172.31.0.1", "env:", "env:X Y", "file:", "file:~nobody-9/x"),
    *("file:\0", "file:/dev/null", "file:/", "http://", "https://[", "https://a b/", "../..", "1.30.1", "UPID:a:b:"),
    *([], {}, [None], [[]], {"": ""}, {"a": {"b": 1}}, [1, "a"]),
]
ANYTHING = st.sampled_from(ODD).map(copy.deepcopy)


@st.composite
def mutated(draw: st.DrawFn, whole: Any) -> Any:
    """A copy of what JSON could hold, with one to three things in it gone, replaced, doubled or added."""
    made = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(places(made)) or [(None, None)]))
        if holder is None:
            return draw(ANYTHING)
        match draw(st.sampled_from(("gone", "odd", "odd", "other", "more"))):
            case "gone":
                del holder[key]
            case "odd":
                holder[key] = draw(ANYTHING)
            case "other":
                holder[key] = copy.deepcopy(draw(st.sampled_from([h[k] for h, k in places(made)])))
            case _ if isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = draw(ANYTHING)
            case _:
                holder.append(copy.deepcopy(holder[key]))
    return made


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a value of JSON, as what holds it and under which key or index."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


@st.composite
def torn(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with a part cut out, turned over or put in."""
    first, last = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
    return whole[:first] + draw(st.binary(max_size=8) | st.just(whole[first:last][::-1])) + whole[last:]


def toml(value: Any) -> str:
    """A value as TOML has it on one line; None, which it cannot say, as a word."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


# Environments


def read_environment(folder: Path, content: bytes) -> None:
    file = folder / "fuzz.toml"
    file.write_bytes(content)
    try:
        assert isinstance(load(file), Environment)
    except EnvironmentInvalid as error:
        assert str(error).startswith(f"{file}: ")  # noqa: PT017 - either end is right


@FUZZ
@given(mutated(LAB))
def test_an_environment_is_valid_or_its_faults_are_told(tmp_path: Path, described: Any) -> None:
    rows = described if isinstance(described, dict) else {"name": described}
    read_environment(tmp_path, "\n".join(f"{json.dumps(k)} = {toml(v)}" for k, v in rows.items()).encode())


@FUZZ
@given(torn(find("lab").read_bytes()) | st.binary())
@example(b"\xff\xfe")
@example(b"a = " + b"[" * 5000)
def test_a_torn_environment_is_told_as_one(tmp_path: Path, content: bytes) -> None:
    read_environment(tmp_path, content)


@pytest.mark.parametrize(
    "reference", ["file:~nobody-9/x", "file:\\u0000", "file:/", "file:/dev/zero/x", "env:NOT_SET_9"]
)
def test_a_secret_that_cannot_be_read_is_a_fault_of_the_file(tmp_path: Path, reference: str) -> None:
    text = find("lab").read_text().replace('provider = "lab"\n', "").replace("provider_options", "#")
    text = text.replace("file:/var/lib/haproof-lab/wordpress-db-password", reference)
    read_environment(tmp_path, text.encode())
    with pytest.raises(EnvironmentInvalid, match=r"wordpress\.database_password: "):
        load(tmp_path / "fuzz.toml")


def test_a_secret_that_is_no_text_is_a_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    test_a_secret_that_cannot_be_read_is_a_fault_of_the_file(tmp_path, f"file:{tmp_path}/binary")


# Histories


def events() -> list[dict[str, Any]]:
    """A drill's history with everything in it: steady for two seconds, broken for one, healed."""
    probe = {"kind": "probe", "layer": "vip", "error": ""}
    probes = [
        {
            **probe,
            "intended_s": at / 10,
            "started_s": at / 10,
            "ended_s": at / 10 + 0.01,
            "error": "refused" * (at in (25, 26)),
        }
        for at in range(50)
    ]
    write = {"kind": "write", "sort": "row", "digest": "d", "error": ""}
    writes = [
        {**write, "name": str(at), "intended_s": at / 5, "started_s": at / 5, "ended_s": at / 5 + 0.01}
        for at in range(20)
    ]
    fault = {"kind": "fault", "name": "power", "targets": ["worker"]}
    steps = zip(("inject", "injected", "heal", "healed"), (2.0, 2.1, 3.0, 3.1), strict=True)
    phases = zip(("steady", "fault", "redundancy", "verification", "end"), (0.0, 2.0, 3.1, 4.0, 5.0), strict=True)
    return [
        {
            "kind": "header",
            "drill": "a",
            "environment": "lab",
            "seed": 1,
            "command": "x",
            "at_s": 0.0,
            "began": "2026-11-23T03:00:00Z",
            "intervals_s": {"vip": 0.1, "write/row": 0.2},
        },
        *({"kind": "phase", "name": name, "at_s": at_s} for name, at_s in phases),
        {"kind": "allowed", "layer": "vip", "seconds": 3.0, "formula": "3 s"},
        *probes,
        *writes,
        *({"kind": "found", "sort": "row", "name": one["name"], "digest": "d"} for one in writes),
        *({**fault, "step": step, "at_s": at_s} for step, at_s in steps),
        {"kind": "seen", "subject": "node/worker", "state": "NotReady", "at_s": 2.5},
        {"kind": "aborted", "reason": "x", "at_s": 5.0},
    ]


def judged(folder: Path, content: bytes) -> Judgement | None:
    """What is said of a history, or nothing where it is told to be none."""
    (folder / "history.jsonl").write_bytes(content)
    try:
        return judge(History.read(folder))
    except HistoryError as error:
        assert str(folder) in str(error)  # noqa: PT017
        return None


def lines(told: Any) -> bytes:
    rows = told if isinstance(told, list) else [told]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_the_history_that_is_mutated_is_a_whole_one(tmp_path: Path) -> None:
    found = judged(tmp_path, lines(events()[:-1]))
    assert found is not None
    assert found.layers[0].outages


@FUZZ
@given(mutated(events()))
def test_a_history_is_judged_or_told_to_be_none(tmp_path: Path, told: Any) -> None:
    found = judged(tmp_path, lines(told))
    assert found is None or isinstance(found, Judgement)


@FUZZ
@given(torn(lines(events())) | st.binary())
@example(b"\xff\n")
@example(b'{"kind": "header"')
def test_a_torn_history_is_judged_or_told_to_be_none(tmp_path: Path, content: bytes) -> None:
    found = judged(tmp_path, content)
    assert found is None or isinstance(found, Judgement)


# Certificates


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate that is signed."""
    folder = tmp_path_factory.mktemp("signed")
    found = record().model_copy(
        update={"scenarios": tuple(s.model_copy(update={"evidence": ()}) for s in record().scenarios)}
    )
    write(folder, found)
    sign(folder, new_key(folder.parent / "key.pem"))
    return folder


CERTIFICATE = json.loads(record().model_dump_json())


@FUZZ
@given(mutated(CERTIFICATE).map(lambda told: json.dumps(told).encode()) | torn(record().model_dump_json().encode()))
def test_a_certificate_is_read_or_told_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "certificate.json").write_bytes(content)
    try:
        found = Record.read(tmp_path)
        assert isinstance(found.judged_again(), Record)
    except Unreadable as error:
        assert "certificate.json: " in str(error)  # noqa: PT017


@FUZZ
@given(data=st.data())
def test_an_envelope_that_was_changed_is_never_taken_for_a_signed_one(signed: Path, data: st.DataObject) -> None:
    held = (signed / FILE).read_bytes()
    envelope = json.loads(held)
    payload = json.loads(base64.b64decode(envelope["payload"]))
    inner = mutated(payload).map(
        lambda told: envelope | {"payload": base64.b64encode(json.dumps(told).encode()).decode()}
    )
    changed = data.draw((mutated(envelope) | inner).map(lambda told: json.dumps(told).encode()) | torn(held))
    (signed / FILE).write_bytes(changed)
    try:
        said = verify(signed, [])
        assert isinstance(said, Verification)
        assert said.complaints or _means(changed) == _means(held)
    except NotSigned as error:
        assert str(error)  # noqa: PT017
    finally:
        (signed / FILE).write_bytes(held)


def _means(envelope: bytes) -> tuple[Any, Any]:
    """What of an envelope is signed; the rest of it may say anything."""
    told = json.loads(envelope)
    return base64.b64decode(told["payload"]), told["payloadType"]


# Proxmox VE


UPID = "UPID:pve:0000ABCD:00000001:65000000:qmstart:111:root@pam:"
PVE: list[tuple[Any, Callable[[Hypervisor], Any], type]] = [
    ({"data": {"version": "9.1.3", "release": "9.1"}}, lambda api: api.version(), str),
    (
        {"data": [{"vmid": 111, "name": "a", "status": "running", "tags": "x;y", "template": 0, "type": "qemu"}]},
        lambda api: api.vms(),
        dict,
    ),
    ({"data": {"cores": 4, "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1"}}, lambda api: api.config(111), dict),
    ({"data": {"status": "running", "qmpstatus": "paused"}}, lambda api: api.power(111), str),
    ({"data": {"status": "stopped", "exitstatus": "OK"}}, lambda api: api.wait(UPID, 0.05), type(None)),
]


@contextmanager
def answering(content: bytes, status: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every request of the hypervisor's library is answered so."""

    def send(self: object, request: requests.PreparedRequest, **_: object) -> requests.Response:
        response = requests.Response()
        response.status_code, response._content = status, content
        response.reason, response.request, response.url = "Fuzzed", request, str(request.url)
        return response

    with monkeypatch.context() as patched:
        patched.setattr(requests.adapters.HTTPAdapter, "send", send)
        yield


@FUZZ
@given(data=st.data())
def test_proxmox_is_understood_or_told_to_be_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    (tmp_path / "token").write_text("t")
    description = ENVIRONMENT.hypervisor
    described = type(description).model_validate(
        description.model_dump() | {"ca": None, "token": f"file:{tmp_path}/token"}
    )
    whole, ask, kind = data.draw(st.sampled_from(PVE))
    coded = json.dumps(whole).encode()
    content = data.draw(mutated(whole).map(lambda told: json.dumps(told).encode()) | torn(coded))
    status = data.draw(st.sampled_from((200, 200, 200, 204, 301, 400, 401, 404, 500, 501, 503, 596, 999)))
    with answering(content, status, monkeypatch):
        hypervisor = Hypervisor(described, Patience(recovery_s=0, pause_s=0))
        try:
            found = ask(hypervisor)
        except HypervisorError as error:
            assert str(error)  # noqa: PT017
            return
    assert isinstance(found, kind)
    if isinstance(found, dict) and kind is dict and 111 in found:
        assert isinstance(found[111], Vm)


# Cloudflare


CLOUDFLARE: list[tuple[Any, Callable[[Account], Any]]] = [
    ([{"id": "a", "name": "haproof-lab", "connections": [{"id": "c"}]}], lambda api: api.tunnel()),
    ({"id": "a", "name": "haproof-lab"}, lambda api: api.make_tunnel()),
    ("ey-token", lambda api: api.token(Tunnel("a", "a", connected=False))),
    (
        {"tunnel_id": "a", "config": {"ingress": [{"hostname": "www.example.org", "service": "http://x"}]}},
        lambda api: api.ingress(Tunnel("a", "a", connected=False)),
    ),
    ([{"id": "a", "type": "CNAME", "content": "x", "name": "y", "proxied": True, "ttl": 1}], lambda api: api.records()),
    ([{"id": "a", "type": "onetimepin", "name": "PIN", "config": {}}], lambda api: api.providers()),
    (
        [{"id": "a", "name": "p", "decision": "allow", "include": [{"email": {"email": "a@b.c"}}]}],
        lambda api: api.policies(),
    ),
    ({"id": "a"}, lambda api: api.set_policy(Policy("p", "allow", ()))),
    (
        [
            {
                "id": "a",
                "name": "n",
                "type": "self_hosted",
                "domain": "www.example.org/wp-admin",
                "destinations": [{"type": "public", "uri": "www.example.org/wp-admin"}],
                "session_duration": "24h",
                "policies": [{"id": "p", "precedence": 1}],
                "allowed_idps": ["i"],
            }
        ],
        lambda api: (api.application("n"), api.applications_over("www.example.org")),
    ),
    ([{"id": "a", "name": "n", "client_id": "c"}], lambda api: api.service_token("n")),
    ({"id": "a", "client_id": "c", "client_secret": "s"}, lambda api: api.make_service_token("n")),
]
EMPTY = {"success": True, "errors": [], "messages": [], "result": [], "result_info": {"page": 2, "total_count": 0}}


@settings(FUZZ, max_examples=40)  # its library takes its time over each answer
@given(data=st.data())
def test_cloudflare_is_understood_or_told_to_be_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    (tmp_path / "token").write_text("t")
    edge = ENVIRONMENT.edge.model_dump() | {"ca": None, "api_token": f"file:{tmp_path}/token"}
    result, ask = data.draw(st.sampled_from(CLOUDFLARE))
    whole = EMPTY | {"result": result, "result_info": {"page": 1, "per_page": 20, "total_count": 1}}
    content = data.draw(
        (mutated(whole) | mutated(result).map(lambda told: whole | {"result": told})).map(
            lambda told: json.dumps(told).encode()
        )
        | torn(json.dumps(whole).encode())
    )
    status = data.draw(st.sampled_from((200, 200, 200, 400, 403, 404, 409, 500)))
    # A list is asked for page by page, until one is empty.
    answers = chain([(status, content)], repeat((200, json.dumps(EMPTY).encode())))

    def answer(_: httpx.Request) -> httpx.Response:
        code, told = next(answers)
        return httpx.Response(code, content=told, headers={"content-type": "application/json"})

    with monkeypatch.context() as patched:
        patched.setattr(account, "RETRIES", 0)
        patched.setattr("ssl.create_default_context", lambda **_: None)  # it reads all authorities each time
        patched.setattr(account, "DefaultHttpxClient", lambda **_: httpx.Client(transport=httpx.MockTransport(answer)))
        try:
            ask(Account(ENVIRONMENT.model_copy(update={"edge": Edge.model_validate(edge)})))
        except ActionFailed as error:
            assert "Cloudflare" in str(error)  # noqa: PT017
