"""The decisions of the bring-up, without a target."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import requests
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic.exceptions import DynamicApiError
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError

from environments.load import find, load
from environments.model import Environment, Machine
from environments.secret import SecretMissing
from provisioning.action import ActionFailed, BuildFailed
from provisioning.addons import CONFIG_DIGEST, ClusterReady, DnsSpread, StrictArp, digest_of, pool_documents
from provisioning.build import bring_up
from provisioning.cluster import comparable, nodes_under_pressure, unready_nodes
from provisioning.hypervisor import Hypervisor, HypervisorError, Vm, owned
from provisioning.kubeadm import JoinSecrets, as_yaml, cluster_documents, init_document, join_document
from provisioning.machines import (
    TEMPLATE_TAG,
    Machines,
    MachinesRunning,
    MachinesShaped,
    answers,
    checksum_of,
    config_changes,
    desired_config,
    disk_gib,
    refusals,
)
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.session import provider
from provisioning.state import Busy, State
from tests import powers

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environment() -> Environment:
    return load(find("lab"))


class Silent:
    """A reporter that only keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def begin(self, action: str) -> None:
        self.heard.append(action)

    def end(self, action: str, changes: Sequence[str], elapsed_s: float) -> None:
        assert elapsed_s >= 0


class Step:
    """An action that is done once applied, or fails."""

    def __init__(self, name: str, failure: Exception | None = None) -> None:
        self.name = name
        self.done = False
        self.failure = failure

    def pending(self) -> Sequence[str]:
        return [] if self.done else [f"do {self.name}"]

    def apply(self) -> None:
        if self.failure:
            raise self.failure
        self.done = True


def test_a_second_run_changes_nothing() -> None:
    steps = [Step("one"), Step("two")]
    assert bring_up(steps, Silent()).changed == 2
    assert bring_up(steps, Silent()).changed == 0


def test_a_plan_tells_all_and_does_nothing() -> None:
    steps = [Step("one"), Step("two")]
    assert bring_up(steps, Silent(), plan=True).changes == {"one": ("do one",), "two": ("do two",)}
    assert not any(step.done for step in steps)


def test_a_failure_names_action_machine_command_and_output_and_the_next_run_goes_on() -> None:
    second = Step("second", ActionFailed("it broke", machine="m1", command="c1", output="last words"))
    steps = [Step("first"), second, Step("third")]
    with pytest.raises(BuildFailed) as raised:
        bring_up(steps, Silent())
    for part in ("second", "it broke", "machine: m1", "command: c1", "last words", "go on from here"):
        assert part in str(raised.value)
    assert [step.done for step in steps] == [True, False, False]
    second.failure = None
    outcome = bring_up(steps, Silent())
    assert outcome.changes == {"first": (), "second": ("do second",), "third": ("do third",)}


@pytest.mark.parametrize(
    ("mishap", "told"),
    [
        (ApiException(403, "Forbidden"), "the Kubernetes API answers 403 Forbidden"),
        (MaxRetryError(HTTPConnectionPool("m1"), "/", Exception("refused")), "MaxRetryError"),
        (HypervisorError("it does not answer"), "it does not answer"),
        (DeadlineExceeded("the task", 5, "running"), "last seen: running"),
        (SecretMissing("the token is gone"), "the token is gone"),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x"),
        (ValueError("no JSON"), "no JSON"),
        (yaml.YAMLError("no YAML"), "no YAML"),
        (subprocess.TimeoutExpired("ssh-keygen", 5), "ssh-keygen"),
        (requests.ConnectionError("no route"), "no route"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("where", ["pending", "apply"])
def test_what_the_target_does_to_an_action_is_told_as_its_failure(
    monkeypatch: pytest.MonkeyPatch, where: str, mishap: Exception, told: str
) -> None:
    step = Step("second")
    monkeypatch.setattr(step, where, mock.Mock(side_effect=mishap))
    with pytest.raises(BuildFailed) as raised:
        bring_up([Step("first"), step], Silent())
    assert "stopped at “second”" in str(raised.value)
    assert told in str(raised.value)
    assert "go on from here" in str(raised.value)


def test_the_kubernetes_api_is_quoted_without_its_headers() -> None:
    answer = mock.Mock(status=409, reason="Conflict", data=b'{"message": "in use"}')
    answer.getheaders.return_value = {"audit-id": "1"}
    with pytest.raises(BuildFailed) as raised:
        bring_up([Step("one", DynamicApiError(ApiException(http_resp=answer), "a traceback"))], Silent())
    assert "answers 409 Conflict" in str(raised.value)
    assert "in use" in str(raised.value)
    assert not any(noise in str(raised.value) for noise in ("audit-id", "a traceback"))


def test_a_mistake_of_ours_is_not_told_as_the_targets() -> None:
    with pytest.raises(KeyError):
        bring_up([Step("one", KeyError("x"))], Silent())


def provision(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m provisioning` with nothing of this machine's but the path."""
    command = [sys.executable, "-m", "provisioning", *options]
    env = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_plan_without_secrets_says_which_ones_are_missing(tmp_path: Path) -> None:
    done = provision("--env", "seed", "--plan", HOME=str(tmp_path))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "edge.api_token",
        "hypervisor.token",
        "ssh.private_key",
        "wordpress.admin_password",
        "wordpress.database_password",
    ]
    assert "HAPROOF_PVE_TOKEN is not set; export it with the secret" in done.stderr


def test_an_unknown_provider_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(find("lab").read_text().replace('provider = "lab"', 'provider = "nobody"'))
    done = provision("--env", str(path), "--plan", HOME=str(tmp_path))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "hypervisor.provider is “nobody”, and there is no module nobody.provider" in done.stderr


def test_a_providers_own_missing_library_is_not_taken_for_an_unknown_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halved").mkdir()
    (tmp_path / "halved/provider.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        provider("halved")


def test_poll_names_what_it_awaited_and_saw_last() -> None:
    def probe() -> bool:
        raise NotYet("2 of 3")

    with pytest.raises(DeadlineExceeded, match=r"all Pods: not so after 0 s; last seen: 2 of 3"):
        poll("all Pods", probe, timeout_s=0.01, interval_s=0.001)


def test_poll_returns_what_it_found() -> None:
    found = iter([None, False, "it"])
    assert poll("it", lambda: next(found), timeout_s=5, interval_s=0.001) == "it"


def test_poll_passes_other_errors_on() -> None:
    with pytest.raises(ZeroDivisionError):
        poll("x", lambda: 1 / 0, timeout_s=5)


PUBLIC_KEY, MAC = "ssh-ed25519 AAAA", "BC:24:11:00:00:01"


def desired(environment: Environment, machine: Machine) -> dict[str, str]:
    return desired_config(environment, machine, PUBLIC_KEY)


def vm(vmid: int, name: str, *tags: str, template: bool = False) -> Vm:
    return Vm(vmid, name, "stopped", frozenset(tags), template)


def test_nothing_in_the_way_is_no_refusal(environment: Environment) -> None:
    vms = {
        111: vm(111, "srvk8s-master01", "haproof-lab"),
        9000: vm(9000, "debian-12-haproof", TEMPLATE_TAG, template=True),
    }
    assert refusals(environment, environment.cluster_machines, vms) == []


def test_a_clone_cut_off_before_its_tag_is_still_ours(environment: Environment) -> None:
    assert refusals(environment, environment.cluster_machines, {111: vm(111, "srvk8s-master01", TEMPLATE_TAG)}) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (vm(111, "srvk8s-master01"), "instead of haproof-lab"),
        (vm(111, "payroll", "haproof-lab"), "is “payroll”"),
        (vm(555, "srvk8s-master01", "haproof-lab"), "belongs to VM 555"),
        (vm(9000, "payroll"), "meant for the template"),
    ],
)
def test_what_something_else_holds_is_refused(environment: Environment, other: Vm, expected: str) -> None:
    found = refusals(environment, environment.cluster_machines, {other.vmid: other})
    assert len(found) == 1
    assert expected in found[0]


def test_only_tagged_machines_are_owned(environment: Environment) -> None:
    vms = {1: vm(1, "a", "haproof-lab"), 2: vm(2, "b", "haproof-laboratory"), 3: vm(3, "c")}
    assert set(owned(environment, vms)) == {1}


def test_a_written_configuration_needs_no_change(environment: Environment) -> None:
    machine = environment.machine("srvdbm-sql01")
    desired = desired_config(environment, machine, "ssh-ed25519 AAAA")
    assert desired["ipconfig0"] == "ip=10.20.20.220/24,gw=10.20.20.1"
    assert desired["ipconfig1"] == "ip=172.31.0.120/24"
    actual: dict[str, Any] = {
        **desired,
        "cores": 4,
        "tags": "b;haproof-lab",
        "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr2",
        "net1": "virtio=BC:24:11:00:00:02,bridge=vmbr1",
    }
    assert config_changes(actual, desired) == {}
    assert set(config_changes({}, desired)) == set(desired)


def test_a_card_on_another_bridge_keeps_its_mac_address(environment: Environment) -> None:
    desired = desired_config(environment, environment.machine("srvk8s-master01"), "ssh-ed25519 AAAA")
    changes = config_changes({**desired, "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr9"}, desired)
    assert changes == {"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1"}


def test_the_templates_tag_does_not_stay_on_a_clone(environment: Environment) -> None:
    desired = desired_config(environment, environment.machine("srvk8s-master01"), "ssh-ed25519 AAAA")
    assert config_changes(
        {**desired, "tags": f"x;{TEMPLATE_TAG}", "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1"}, desired
    ) == {"tags": "haproof-lab;x"}


def test_a_checksum_is_found_by_file_name() -> None:
    assert checksum_of("aa  one.raw\nbb *two.raw\n", "two.raw") == "bb"
    with pytest.raises(KeyError):
        checksum_of("aa  one.raw\n", "three.raw")


def test_a_closed_port_still_shows_a_host() -> None:
    assert answers("127.0.0.1", port=1)


def test_kubeadm_is_told_the_documents_settings(environment: Environment) -> None:
    cluster, kubelet = cluster_documents(environment, "v1.30.4")
    assert cluster["controlPlaneEndpoint"] == "srvk8s-master01:6443"
    assert cluster["networking"]["podSubnet"] == "10.244.0.0/16"
    assert kubelet["cgroupDriver"] == "systemd"


def test_only_control_planes_get_the_certificate_key(environment: Environment) -> None:
    given = JoinSecrets("token", "sha256:0", "key")
    worker = join_document(environment, environment.machine("srvk8s-worker01"), given)
    master = join_document(environment, environment.machine("srvk8s-master02"), given)
    assert "controlPlane" not in worker
    assert master["controlPlane"]["certificateKey"] == "key"
    assert master["controlPlane"]["localAPIEndpoint"]["advertiseAddress"] == "172.31.0.12"


def test_the_token_of_init_lives_for_minutes(environment: Environment) -> None:
    tokens = init_document(environment, environment.machine("srvk8s-master01"), "key")["bootstrapTokens"]
    assert tokens == [{"ttl": "15m"}], "kubeadm makes one that lives for a day where the list is empty"


PROXY_CONFIG = "ipvs:\n  strictARP: {}\nmode: ''\n"


def proxied(config: str, digest: str | None) -> tuple[Any, StrictArp]:
    """A cluster whose kube-proxy has `config`, and was started with the one of `digest`."""
    cluster = mock.Mock()
    cluster.core.read_namespaced_config_map.return_value.data = {"config.conf": config}
    template = cluster.apps.read_namespaced_daemon_set.return_value.spec.template
    template.metadata.annotations = {CONFIG_DIGEST: digest} if digest else None
    return cluster, StrictArp(cluster, lambda: True)


@pytest.mark.parametrize(
    ("config", "digest", "pending"),
    [
        (PROXY_CONFIG.format("false"), None, "set strictARP"),
        ("ipvs: null\n", None, "set strictARP"),
        (PROXY_CONFIG.format("true"), None, "restart kube-proxy"),
        (PROXY_CONFIG.format("true"), "of another", "restart kube-proxy"),
        (PROXY_CONFIG.format("true"), digest_of(PROXY_CONFIG.format("true")), None),
    ],
)
def test_kube_proxy_is_behind_until_it_was_started_with_strict_arp(
    config: str, digest: str | None, pending: str | None
) -> None:
    lines = proxied(config, digest)[1].pending()
    assert [line.startswith(pending) for line in lines] == [True] if pending else lines == []


def test_strict_arp_is_settled_by_what_applying_it_writes() -> None:
    cluster, action = proxied(PROXY_CONFIG.format("false"), None)
    action.apply()
    config = cluster.core.patch_namespaced_config_map.call_args.args[2]["data"]["config.conf"]
    template = cluster.apps.patch_namespaced_daemon_set.call_args.args[2]["spec"]["template"]
    assert yaml.safe_load(config) == {"ipvs": {"strictARP": True}, "mode": ""}
    assert proxied(config, template["metadata"]["annotations"][CONFIG_DIGEST])[1].pending() == []


def named(name: str, node: str | None, leaving: bool = False) -> client.V1Pod:
    """One of CoreDNS's, on `node` or not placed yet."""
    meta = client.V1ObjectMeta(name=name, deletion_timestamp=datetime.now(UTC) if leaving else None)
    return client.V1Pod(metadata=meta, spec=client.V1PodSpec(containers=[], node_name=node))


@pytest.mark.parametrize(
    ("pods", "anew"),
    [
        ([named("a", "master01"), named("b", "master01")], ["b"]),
        ([named("a", "master01"), named("b", "worker01")], []),
        ([named("a", "master01")], []),
        ([named("a", "master01"), named("b", None)], []),
        ([named("a", "master01"), named("b", "master01"), named("c", "worker01", leaving=True)], ["b"]),
    ],
    ids=["as kubeadm leaves it", "parted", "one only", "one not placed yet", "the one elsewhere leaves"],
)
def test_names_are_parted_where_one_machine_answers_for_all(pods: list[client.V1Pod], anew: list[str]) -> None:
    """One stays, and those made instead are waited for until they have a machine."""
    cluster = mock.Mock()
    cluster.core.list_namespaced_pod.side_effect = [
        mock.Mock(items=pods),
        mock.Mock(items=pods),
        mock.Mock(items=[pods[0], named("new", None)]),
        mock.Mock(items=[pods[0], named("new", "worker02")]),
    ]
    action = DnsSpread(cluster, lambda: True)
    assert [line.split()[1] for line in action.pending()] == anew
    if anew:
        action.apply()
    assert [call.args[0] for call in cluster.core.delete_namespaced_pod.call_args_list] == anew
    assert cluster.core.list_namespaced_pod.call_count == (4 if anew else 1)


def pod(name: str, waiting: str | None = None, owner: str = "DaemonSet") -> client.V1Pod:
    """One of MetalLB's, running or waiting."""
    state = client.V1ContainerState(waiting=client.V1ContainerStateWaiting(reason=waiting) if waiting else None)
    status = client.V1ContainerStatus(
        name="one", state=state, image="i", image_id="i", ready=not waiting, restart_count=1
    )
    owners = [client.V1OwnerReference(api_version="v1", kind=owner, name="o", uid="o")]
    meta = client.V1ObjectMeta(name=name, namespace="metallb-system", uid=f"uid of {name}", owner_references=owners)
    return client.V1Pod(metadata=meta, status=client.V1PodStatus(container_statuses=[status]))


def test_what_kubelet_holds_back_when_the_build_comes_is_replaced_once_and_no_other(environment: Environment) -> None:
    """Who crashes afterwards has a cause that is still there, and a mirror of a static Pod cannot be replaced."""
    crashed = "CrashLoopBackOff"
    passing = iter(
        [
            [pod("before", crashed), pod("starting", "ContainerCreating"), pod("static", crashed, "Node")],
            [pod("before", crashed), pod("static", crashed, "Node")],
            [pod("instead", crashed), pod("static", crashed, "Node")],
        ]
    )
    system: list[client.V1Pod] = []
    cluster = mock.Mock(environment=environment)
    cluster.core.list_namespaced_pod.side_effect = lambda name, **_: mock.Mock(
        items=system if name == "metallb-system" else []
    )
    unready = iter([["daemonset/speaker 4 of 5"], ["daemonset/speaker 4 of 5"], []])

    def looked_at(_: ClusterReady) -> list[str]:
        system[:] = next(passing, [])
        return next(unready)

    system[:] = next(passing)
    with mock.patch.object(ClusterReady, "_unready", looked_at):
        ClusterReady(cluster, lambda: True).apply()
    deleted = [call.args for call in cluster.core.delete_namespaced_pod.call_args_list]
    assert deleted == [("before", "metallb-system")]


class Configured:
    """A hypervisor of machines that have a configuration each, and what it is asked to change."""

    def __init__(self, machines: Sequence[Machine], config: dict[str, Any]) -> None:
        self._machines = machines
        self._config = config
        self.called: list[tuple[str, str]] = []
        self.awaited: list[tuple[str, str, dict[str, str]]] = []

    def vms(self) -> dict[int, Vm]:
        return {machine.vmid: vm(machine.vmid, machine.name, "haproof-lab") for machine in self._machines}

    def config(self, vmid: int) -> dict[str, Any]:
        return {**self._config}

    def call(self, method: str, path: str, **_: str) -> None:
        self.called.append((method, path))

    def task(self, method: str, path: str, **parameters: str) -> None:
        self.awaited.append((method, path, parameters))


@pytest.mark.parametrize(
    ("disk", "size", "grows"),
    [
        ("local-lvm:vm-111-disk-0,size=3G", 3, True),
        ("local-lvm:vm-111-disk-0,size=2252M", 2252 / 1024, True),
        ("local-lvm:vm-111-disk-0", 0, True),
        ("local-lvm:vm-111-disk-0,size=20G", 20, False),
        ("local-lvm:vm-111-disk-0,size=20480M", 20, False),
        ("local-lvm:vm-111-disk-0,size=1T", 1024, False),
    ],
)
def test_a_disk_that_is_too_small_is_grown_by_a_task_that_is_awaited(
    environment: Environment, disk: str, size: float, grows: bool
) -> None:
    """Also where a run was cut off before: the settings are as they should be, and nothing else tells."""
    machine = environment.machine("srvk8s-master01")
    settings = {key: value.replace("virtio,", f"virtio={MAC},") for key, value in desired(environment, machine).items()}
    hypervisor = Configured([machine], {**settings, "scsi0": disk})
    shell = mock.Mock()
    shell.public_key.return_value = PUBLIC_KEY
    action = MachinesShaped(Machines(environment, (machine,), cast(Hypervisor, hypervisor), shell))
    assert disk_gib({"scsi0": disk}) == size
    assert list(action.pending()) == (["grow the disk of srvk8s-master01 to 20 GiB"] if grows else [])
    action.apply()
    assert hypervisor.awaited == ([("put", "qemu/111/resize", {"disk": "scsi0", "size": "20G"})] if grows else [])
    assert hypervisor.called == []


class Powers(powers.Powers):
    """A hypervisor of machines in a state each."""

    def __init__(self, states: dict[Machine, str]) -> None:
        super().__init__({machine.vmid: state for machine, state in states.items()})
        self.machines = list(states)

    def vms(self) -> dict[int, Vm]:
        listed = {machine.vmid: vm(machine.vmid, machine.name, "haproof-lab") for machine in self.machines}
        return {vmid: replace(one, status=self.states[vmid]) for vmid, one in listed.items()}


def test_what_is_stopped_is_started_and_what_is_paused_goes_on(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = environment.cluster_machines[:3]
    hypervisor = Powers(dict(zip(machines, ("running", "paused", "stopped"), strict=True)))
    action = MachinesRunning(Machines(environment, machines, cast(Hypervisor, hypervisor), mock.Mock()))
    tried: list[str] = []
    monkeypatch.setattr("provisioning.machines.answers", tried.append)
    assert list(action.pending()) == [f"resume {machines[1].name}", f"start {machines[2].name}"]
    action.apply()
    assert list(action.pending()) == []
    assert tried == [str(environment.address(machines[2]))]  # of a paused one, the address is its own


def test_an_address_that_is_answered_keeps_a_stopped_machine_off_and_no_paused_one(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = environment.cluster_machines[:2]
    hypervisor = Powers(dict(zip(machines, ("paused", "stopped"), strict=True)))
    action = MachinesRunning(Machines(environment, machines, cast(Hypervisor, hypervisor), mock.Mock()))
    monkeypatch.setattr("provisioning.machines.answers", lambda _: True)
    with pytest.raises(ActionFailed, match=f"although {machines[1].name} is off"):
        action.apply()
    assert list(hypervisor.states.values()) == ["running", "stopped"]


def test_a_plan_starts_what_is_not_there_yet(environment: Environment) -> None:
    machines = environment.cluster_machines[:1]
    context = Machines(environment, machines, cast(Hypervisor, Powers({})), mock.Mock())
    assert list(MachinesRunning(context).pending()) == [f"start {machines[0].name}"]


def test_join_secrets_do_not_show() -> None:
    assert "token" not in repr(JoinSecrets("token", "sha256:0", "key"))


def test_documents_make_one_stream(environment: Environment) -> None:
    assert list(yaml.safe_load_all(as_yaml(pool_documents(environment)))) == pool_documents(environment)


def test_the_pool_is_the_documents(environment: Environment) -> None:
    pool, advertisement = pool_documents(environment)
    assert (pool["metadata"]["name"], pool["spec"]["addresses"]) == ("first-pool", ["172.31.0.100-172.31.0.110"])
    assert advertisement["metadata"]["name"] == "metallb-pool-advertise"
    assert advertisement["spec"]["ipAddressPools"] == ["first-pool"]


def test_what_changes_by_itself_is_no_difference() -> None:
    live = {"kind": "X", "metadata": {"name": "a", "uid": "1", "resourceVersion": "5"}, "spec": {}, "status": {"n": 1}}
    assert comparable(live) == {"kind": "X", "metadata": {"name": "a"}, "spec": {}}


def test_an_absent_node_is_not_ready() -> None:
    assert unready_nodes([], {"a"}) == {"a": "absent"}


def test_a_node_without_room_is_told_by_what_it_is_short_of() -> None:
    def node(name: str, **states: str) -> SimpleNamespace:
        conditions = [SimpleNamespace(type=kind, status=status) for kind, status in states.items()]
        return SimpleNamespace(metadata=SimpleNamespace(name=name), status=SimpleNamespace(conditions=conditions))

    nodes = [
        node("a", Ready="True", DiskPressure="True", PIDPressure="True"),
        node("b", Ready="True", DiskPressure="False", MemoryPressure="Unknown"),
        node("stranger", DiskPressure="True"),
    ]
    assert nodes_under_pressure(nodes, {"a", "b", "absent"}) == {"a": "DiskPressure and PIDPressure"}


def hold(folder: str, held: Any, release: Any) -> None:
    with State(Path(folder)).locked("building"):
        held.set()
        release.wait(10)


def test_a_second_run_at_once_is_refused_naming_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    first = context.Process(target=hold, args=(str(tmp_path), held, release))
    first.start()
    assert held.wait(10)
    try:
        with pytest.raises(Busy) as raised, State(tmp_path).locked("building"):
            pass
    finally:
        release.set()
        first.join()
    assert f'"pid": {first.pid}' in str(raised.value)
    with State(tmp_path).locked("building"):
        assert json.loads((tmp_path / "lock").read_text())["doing"] == "building"
