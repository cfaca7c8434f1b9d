"""What layers are asked, and how what was written is found again."""

import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos import facts, layers
from chaos.drills import PAGES, VISITORS
from chaos.layers import FRONT_PAGE, PATH, visitors
from chaos.ledger import Ledger, files
from environments.model import Machine, Role
from provisioning.cluster import Cluster
from provisioning.hypervisor import Vm
from provisioning.poll import NotYet
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


def pod(name: str, node: str, *started: str | None, deleted: bool = False) -> dict[str, Any]:
    """As the API has it; `None` is a container that does not run."""
    metadata = {"name": name, "namespace": "kube-system"}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-28T12:00:00Z"
    states = [{"running": {"startedAt": at}} if at else {"waiting": {"reason": "CrashLoopBackOff"}} for at in started]
    return {
        "metadata": metadata,
        "spec": {"nodeName": node},
        "status": {"containerStatuses": [{"state": state} for state in states], "podIPs": [{"ip": "10.244.0.4"}]},
    }


def endpoint(behind: str, address: str, *, ready: bool = True) -> dict[str, Any]:
    """As an EndpointSlice has it."""
    return {"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": behind}}


def endpoint_slice(service: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    """As the API has it."""
    labels = {"kubernetes.io/service-name": service}
    metadata = {"name": f"{service}-abcde", "namespace": "kube-system", "labels": labels}
    return {"metadata": metadata, "endpoints": [*endpoints] or None}


def test_what_the_api_tells_from_before_a_boot_is_found() -> None:
    """A machine off for less than the grace period: its node is Ready, and so are Pods that are not there."""
    booted = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC).timestamp()
    pods = [
        pod("speaker-a", "n1", "2026-11-28T11:25:00Z"),
        pod("half", "n1", "2026-11-28T12:00:20Z", "2026-11-28T11:25:00Z"),
        pod("started", "n1", "2026-11-28T12:00:20Z"),
        pod("by another clock", "n1", "2026-11-28T11:59:55Z"),
        pod("failing", "n1", None),
        pod("replaced", "n1", "2026-11-28T11:25:00Z", deleted=True),
        pod("speaker-b", "n2", "2026-11-28T11:25:00Z"),
        {"metadata": {"name": "pending"}, "spec": {}, "status": {}},
    ]
    assert facts.from_before(pods, {"n1": booted}) == ["half on n1", "speaker-a on n1"]


def test_an_address_that_a_service_routes_to_and_no_pod_has_is_found() -> None:
    """A Pod has another address after a boot; the controller that keeps the slices may have lost its API meanwhile."""
    pods = [
        pod("coredns", "n1", "2026-11-28T12:00:00Z"),
        {"metadata": {"name": "pending", "namespace": "kube-system"}, "spec": {}, "status": {}},
    ]
    slices = [
        endpoint_slice("kube-dns", endpoint("coredns", "10.244.0.2"), endpoint("coredns", "10.244.0.4")),
        endpoint_slice("gone", endpoint("replaced", "10.244.0.3"), endpoint("replaced", "10.244.0.5", ready=False)),
        endpoint_slice("unmade", endpoint("pending", "10.244.0.9")),
        endpoint_slice("empty"),
        endpoint_slice("outside", {"addresses": ["172.31.0.11"], "conditions": {"ready": True}}),
    ]
    expected = ["gone at 10.244.0.3", "kube-dns at 10.244.0.2", "unmade at 10.244.0.9"]
    assert facts.stale_endpoints(slices, pods) == expected


def test_a_target_is_not_whole_before_what_runs_on_a_machine_has_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    master, machines = ENVIRONMENT.with_role(Role.CONTROL_PLANE)[0], ENVIRONMENT.machines
    tags = frozenset({ENVIRONMENT.tag})
    vms = {m.vmid: Vm(m.vmid, m.name, "running", tags, template=False, uptime_s=9000) for m in machines}
    pods = [pod("speaker", master.name, "2026-11-28T11:25:00Z")]
    core = SimpleNamespace(
        list_pod_for_all_namespaces=lambda **_: SimpleNamespace(data=json.dumps({"items": pods}).encode())
    )
    session = SimpleNamespace(environment=ENVIRONMENT, hypervisor=SimpleNamespace(vms=lambda: vms))
    slices = [endpoint_slice("kube-dns", endpoint("speaker", "10.244.0.4"))]
    discovery = SimpleNamespace(
        list_endpoint_slice_for_all_namespaces=lambda **_: SimpleNamespace(data=json.dumps({"items": slices}).encode())
    )
    live = facts.Live(cast(Session, session), cast(Cluster, SimpleNamespace(core=core, discovery=discovery)))
    noon_s = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC).timestamp()
    monkeypatch.setattr(facts, "time", SimpleNamespace(time=lambda: noon_s))
    for other in ("_nodes", "_replicas", "_addons", "_database", "_site"):
        monkeypatch.setattr(facts.Live, other, lambda _: facts.WHOLE)
    assert live.whole()
    slices += [endpoint_slice("kube-dns", endpoint("speaker", "10.244.0.2"))]
    with pytest.raises(NotYet, match=r"^endpoints: no Pod's any more: kube-dns at 10\.244\.0\.2$"):
        live.whole()
    del slices[-1]
    vms[master.vmid] = replace(vms[master.vmid], uptime_s=60)
    with pytest.raises(NotYet, match=f"^restarts: not started since the boot: speaker on {master.name}$"):
        live.whole()
    vms[master.vmid] = replace(vms[master.vmid], status="stopped", uptime_s=0)
    with pytest.raises(NotYet, match=f"^machines: away: {master.name}$"):
        live.whole()


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


def test_files_are_asked_for_on_a_worker_with_two_replicas_too(tmp_path: Path) -> None:
    for replica in ("a", "b"):
        (tmp_path / replica / "volume").mkdir(parents=True)
    script = layers.FILES.format(
        mounts=f"{tmp_path}/*/volume", check=layers.WRITE, otherwise="", end="enter && rm -f $own"
    )
    asked = subprocess.run(["bash", "-c", script], input="one\ntwo\n", capture_output=True, text=True, check=True)
    assert asked.stdout.split() == ["ok", "ok"]
    assert not list(tmp_path.rglob(".haproof*"))
    nowhere = script.replace("/*/volume", "/*/elsewhere")
    told = subprocess.run(["bash", "-c", nowhere], input="one\n", capture_output=True, text=True, check=False)
    assert told.stdout == "the volume is not mounted here\n"
