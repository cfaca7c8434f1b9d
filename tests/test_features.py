"""What is made of the features' outcomes, the command that runs them, and what steps make of what they read."""

import subprocess
import sys
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from kubernetes.client.exceptions import ApiException

from certificate.promises import Promise, templates
from certificate.verdict import NOT_SELECTED, Finding, NotExercised, Verdict, of_error, of_promise, weightiest
from chaos import timers
from chaos.drills import DRILLS
from environments.load import find, load
from environments.model import AddressRange
from provisioning.duration import duration_s
from provisioning.hypervisor import Vm
from provisioning.poll import DeadlineExceeded
from steps import arp, cluster, guests, machines, nodes, pods, power, services, site
from steps.complaints import none_of
from steps.namespaces import run_by

ROOT = Path(__file__).parent.parent
SCENARIOS = templates(ROOT / "features")


# Verdicts


BUILT = Promise(id="P4", text="", layer="", built=True)
UNBUILT = Promise(id="P1", text="", layer="", built=False, reason="not drilled")
HELD = Finding(Verdict.PROVEN)


def test_a_promise_whose_limit_is_shown_is_refuted_by_it() -> None:
    promise = Promise(id="P1", text="", layer="", built=True, limit="two are no majority without each other")
    assert of_promise(promise, {"a": Finding(Verdict.PROVEN)}) == Finding(Verdict.REFUTED, promise.limit)
    assert of_promise(promise, {"a": NOT_SELECTED}).verdict is Verdict.NOT_EXERCISED


def test_a_promise_that_is_not_built_says_why() -> None:
    with pytest.raises(ValueError, match="P1: expected a reason"):
        Promise(id="P1", text="", layer="", built=False)


def test_only_an_assertion_of_a_step_refutes() -> None:
    assert of_error(AssertionError("expected 2, found 1"), during_steps=True) == Finding(
        Verdict.REFUTED, "expected 2, found 1"
    )
    assert of_error(AssertionError("left behind"), during_steps=False).verdict is Verdict.UNKNOWN
    assert of_error(DeadlineExceeded("x", 1, "y"), during_steps=True).verdict is Verdict.UNKNOWN
    assert of_error(NotExercised("two cores"), during_steps=True) == Finding(Verdict.NOT_EXERCISED, "two cores")


def test_an_error_that_carries_an_answer_tells_it() -> None:
    refused = ApiException(status=400, reason="Bad Request")
    refused.body = b'{"message": "previous terminated container not found"}'
    told = of_error(refused, during_steps=True).reason
    assert told == 'ApiException: (400) {"message": "previous terminated container not found"}'


def test_the_weightiest_finding_decides() -> None:
    unknown, refuted = Finding(Verdict.UNKNOWN), Finding(Verdict.REFUTED)
    assert weightiest([HELD, unknown]) is unknown
    assert weightiest([unknown, refuted, HELD]) is refuted
    assert weightiest([]) is NOT_SELECTED


@pytest.mark.parametrize(
    ("promise", "found", "verdict"),
    [
        (BUILT, {"a": HELD, "b": HELD}, Verdict.PROVEN),
        (BUILT, {"a": HELD, "b": NOT_SELECTED}, Verdict.NOT_EXERCISED),
        (BUILT, {"a": HELD, "b": Finding(Verdict.UNKNOWN)}, Verdict.UNKNOWN),
        (BUILT, {"a": Finding(Verdict.UNKNOWN), "b": Finding(Verdict.REFUTED)}, Verdict.REFUTED),
        (BUILT, {}, Verdict.NOT_EXERCISED),
        (UNBUILT, {"a": HELD}, Verdict.NOT_EXERCISED),
        (UNBUILT, {"a": Finding(Verdict.REFUTED)}, Verdict.REFUTED),
    ],
)
def test_a_promise_is_proven_by_all_of_its_evidence_only(
    promise: Promise, found: dict[str, Finding], verdict: Verdict
) -> None:
    assert of_promise(promise, found).verdict is verdict


def test_nothing_looked_at_is_no_pass() -> None:
    with pytest.raises(ValueError, match="nothing was looked at"):
        none_of({})


FEATURE = """
Feature: Outcomes
  Scenario: Holds
    Given it holds
  Scenario: Fails
    Given it fails
  Scenario: Cannot be shown
    Given it cannot be shown
  Scenario: Breaks
    Given it breaks
  Scenario: Holds and is not cleaned up
    Given it holds and is not cleaned up
  Scenario: Is skipped
    Given it is skipped
"""
OUTCOMES = {
    "Holds": "proven",
    "Fails": "refuted",
    "Cannot be shown": "not exercised",
    "Breaks": "not judged",
    "Holds and is not cleaned up": "not judged",
    "Is skipped": "not exercised",
}
STEPS = """
import pytest
from pytest_bdd import given, scenarios
from certificate.verdict import NotExercised

scenarios(".")

@pytest.fixture
def dirt():
    yield
    assert False, "left behind"

@given("it holds")
def holds(): pass

@given("it fails")
def fails(): assert False, "expected 2, found 1"

@given("it cannot be shown")
def cannot(): raise NotExercised("two cores are not four")

@given("it breaks")
def breaks(): raise OSError("no route")

@given("it holds and is not cleaned up")
def unclean(dirt): pass

@given("it is skipped")
def skipped(): pytest.skip("not today")
"""


@pytest.fixture
def certified(pytester: pytest.Pytester) -> pytest.RunResult:
    """A run of features whose outcomes are known, one promise for each scenario."""
    lines = FEATURE.splitlines()
    number = 0
    promises = []
    tagged = []
    for line in lines:
        if "Scenario" in line:
            number += 1
            tagged.append(f"  @P{number}")
            promises.append(f'[[promise]]\nid = "P{number}"\ntext = "{line.split(":")[1].strip()}."\nlayer = "x"\n')
            promises.append("built = true\n")
        tagged.append(line)
    folder = pytester.mkdir("features")
    (folder / "outcomes.feature").write_text("\n".join(tagged))
    (folder / "promises.toml").write_text("".join(promises))
    (folder / "test_outcomes.py").write_text(STEPS)
    markers = "\n".join(f"    P{index}" for index in range(1, number + 1))
    pytester.makeini(f"[pytest]\nbdd_features_base_dir = features\nmarkers =\n{markers}\n")
    return pytester.runpytest_inprocess("-p", "certificate.plugin", "features")


def test_each_outcome_has_its_verdict(certified: pytest.RunResult) -> None:
    certified.stdout.fnmatch_lines(["*= not exercised =*", "*two cores are not four*"])
    certified.stdout.fnmatch_lines(["*2 failed, 2 passed, 1 skipped,*1 error*1 not exercised*"])
    assert certified.ret == pytest.ExitCode.TESTS_FAILED
    for scenario, verdict in OUTCOMES.items():
        told = [line for line in certified.outlines if line.endswith(f" {scenario}.")]
        assert len(told) == 1
        assert told[0].split(maxsplit=1)[1].startswith(f"{verdict} ")


def test_disruption_takes_permission(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmarkers =\n    disruptive\n")
    pytester.makeconftest(
        """
        import pytest
        from types import SimpleNamespace
        from steps.power import permission

        @pytest.fixture
        def target():
            chaos = SimpleNamespace(allowed=False)
            return SimpleNamespace(environment=SimpleNamespace(name="seed", chaos=chaos))
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.disruptive
        def test_cut(): raise OSError("must not run")
        """
    )
    result = pytester.runpytest_inprocess("-p", "certificate.plugin")
    result.stdout.fnmatch_lines(["*chaos.allowed is false in the environment seed*", "*1 not exercised*"])
    assert result.ret == 0


# The command


def run_pytest(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def collected(*words: str) -> list[str]:
    listed = run_pytest("--collect-only", "-q", *words).stdout.splitlines()
    return [line.partition("::")[2] for line in listed if "::" in line]


def test_plain_pytest_certifies_and_disrupts_last() -> None:
    names, disruptive, breaking = collected(), collected("-m", "disruptive"), collected("-m", "drill")
    assert len(names) == len(SCENARIOS)
    assert disruptive
    assert breaking
    assert set(names[-len(breaking) :]) == set(breaking)
    assert set(names[-len(breaking) - len(disruptive) : -len(breaking)]) == set(disruptive)


def test_drills_are_picked_by_a_seed() -> None:
    picked = [collected("-m", "drill and short", "--drills", "3", "--seed", seed) for seed in ("1", "1", "2")]
    assert [len(names) for names in picked] == [3, 3, 3]
    assert picked[0] == picked[1]
    assert picked[0] != picked[2]


def test_every_drill_is_a_scenarios() -> None:
    told = {step.name for scenario in SCENARIOS for step in scenario.steps}
    assert [drill.name for drill in DRILLS.values() if drill.does not in told] == []


@pytest.mark.parametrize("words", [[], ["--plan"]])
def test_an_unknown_environment_is_one_clear_message(words: list[str]) -> None:
    done = run_pytest("--env", "nosuch", *words)
    assert done.returncode == 2
    assert "no such file; expected a TOML file, or one of: lab, seed" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# What the steps make of what they read


def test_the_network_cards_of_a_configuration() -> None:
    config = {"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1,firewall=1", "net1": "virtio,bridge=vmbr2", "cores": 4}
    assert machines.cards(config) == {0: machines.Card("bc:24:11:00:00:01", "vmbr1")}


def test_addresses_are_judged_by_the_bridge_of_their_card() -> None:
    environment = load(find("lab"))
    master = environment.machine("srvk8s-master01")
    config = {"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1"}
    seen = {"bc:24:11:00:00:01": {IPv4Interface("172.31.0.11/24")}}
    assert machines.connections(environment, master, config, seen) == []
    moved = {"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr2"}
    assert len(machines.connections(environment, master, moved, seen)) == 2
    assert len(machines.connections(environment, master, config, {})) == 2


def test_a_stranger_on_the_clusters_bridge_is_found() -> None:
    environment = load(find("lab"))
    config = {"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1"}
    known = Vm(111, "srvk8s-master01", "running", frozenset(), template=False)
    stranger = Vm(777, "printer", "stopped", frozenset(), template=False)
    found = machines.strangers(environment, {"vmbr1"}, {known: config, stranger: config})
    assert found == ["expected no card of VM 777 (printer) on vmbr1, found bc:24:11:00:00:01"]


def test_a_refused_connection_is_an_answer() -> None:
    machines.nobody_answers({"a": {"b": "exit 124", "c": "bash: connect: No route to host\nexit 1"}})
    with pytest.raises(AssertionError, match="a: expected no answer from b"):
        machines.nobody_answers({"a": {"b": "bash: connect: Connection refused\nexit 1"}})


def test_addresses_are_read_by_card() -> None:
    text = """[{}, {"ifname": "ens18", "address": "BC:24:11:00:00:01", "addr_info": [
        {"family": "inet", "local": "172.31.0.11", "prefixlen": 24, "scope": "global"},
        {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}]}]"""
    assert guests.parse_addresses(text) == {"bc:24:11:00:00:01": {IPv4Interface("172.31.0.11/24")}}


def test_settings_of_the_next_boot_are_those_that_systemd_would_apply() -> None:
    text = """==> /etc/sysctl.d/k8s.conf <==
# net.ipv4.ip_forward = 0
net.ipv4.ip_forward=1
==> /usr/lib/sysctl.d/10-base.conf <==
net.ipv4.ip_forward = 0
-net/ipv4/conf/all.1/forwarding = 2
==> /usr/lib/sysctl.d/k8s.conf <==
net.ipv4.ip_forward = 7
"""
    assert nodes.settings(nodes.effective_lines(text)) == {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.all/1.forwarding": "2",
    }


def test_the_files_script_prints_what_the_parser_reads(tmp_path: Path) -> None:
    script = nodes.files_script("sysctl.d").replace("/etc/", f"{tmp_path}/etc/")
    folder = tmp_path / "etc" / "sysctl.d"
    folder.mkdir(parents=True)
    (folder / "k8s.conf").write_text("a.b = 1")
    (folder / "dangling.conf").symlink_to("nowhere")
    text = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert "a.b = 1" in nodes.effective_lines(text.replace(str(tmp_path), ""))


def test_what_only_containers_complain_about_is_not_exercised() -> None:
    with pytest.raises(NotExercised, match="a: expected 4 cores, found 2"):
        nodes.unless_contained({"a": ["expected 4 cores, found 2"], "b": []}, {"a"}, "cores")
    with pytest.raises(AssertionError, match="b: expected 4 cores, found 2"):
        nodes.unless_contained({"a": [], "b": ["expected 4 cores, found 2"]}, {"a"}, "cores")


def test_the_cgroup_driver_of_a_running_containerd() -> None:
    options = {"runtimes": {"runc": {"options": {"SystemdCgroup": True}}}}
    assert nodes.runtime_cgroup_driver({"config": {"containerd": options}}) == "systemd"
    assert nodes.runtime_cgroup_driver({"config": {}}) == "cgroupfs"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, set()),
        ({"health": [{"endpoint": "https://a:2379", "health": True}]}, {"health"}),
        ({"members": [{"name": "a", "clientURLs": ["https://a:2379"]}]}, {"members"}),
        ({"status": [{"Status": {"leader": 1}}, {"Status": {"leader": 2}}]}, {"leader"}),
        ({"status": [{"Status": {"leader": 1}}]}, {"leader"}),
        ({"status": [{"Status": {}}, {"Status": {}}]}, {"leader"}),
    ],
)
def test_etcd_is_whole_or_what_is_wrong_is_named(change: dict[str, Any], wrong: set[str]) -> None:
    whole: dict[str, Any] = {
        "members": [{"name": n, "clientURLs": [f"https://{n}:2379"]} for n in "ab"],
        "health": [{"endpoint": f"https://{n}:2379", "health": True} for n in "ab"],
        "status": [{"Status": {"leader": 1}}, {"Status": {"leader": 1}}],
    }
    found = cluster.etcd_complaints({"a", "b"}, **{**whole, **change})
    assert {name for name, lines in found.items() if lines} == wrong


def test_what_pods_hear_is_read_by_name() -> None:
    there = pods.Pod("web-a", "10.244.1.2", "a")
    silent = pods.Pod("web-b", "10.244.2.2", "b")
    heard = pods.parse_calls("10.244.1.2 web-a\n10.244.2.2 wget: download timed out\n", [there, silent])
    assert heard == {"web-a": "web-a", "web-b": "wget: download timed out"}


def test_the_name_servers_own_address_is_no_answer() -> None:
    server = "Server:\t\t10.96.0.10\nAddress:\t10.96.0.10:53\n\n"
    assert pods.resolved(server + "Name:\tkubernetes.default.svc.cluster.local\nAddress: 10.96.0.1\n") == ["10.96.0.1"]
    assert pods.resolved(server + "** server can't find kubernetes.default: NXDOMAIN\n") == []


def test_shared_missing_and_foreign_addresses_are_complaints() -> None:
    pool = AddressRange(first=IPv4Address("172.31.0.100"), last=IPv4Address("172.31.0.110"))
    inside, other, foreign = (IPv4Address(f"172.31.0.{last}") for last in (100, 101, 99))
    assert not any(services.outside(pool, {"a": inside, "b": other}).values())
    assert all(services.outside(pool, {"a": inside, "b": inside}).values())
    assert all(services.outside(pool, {"a": None, "b": foreign}).values())


def test_an_arp_answer_is_told_from_other_frames() -> None:
    mac, wanted, own = bytes.fromhex("bc2411000001"), IPv4Address("172.31.0.100"), IPv4Address("172.31.0.1")
    question = arp.request(mac, own, wanted)
    body = arp.BODY.pack(1, 0x0800, 6, 4, arp.REPLY, mac, wanted.packed, bytes(6), own.packed)
    answer = arp.HEADER.pack(bytes(6), mac, arp.ETHERTYPE_ARP) + body
    assert len(question) == 42
    assert arp.answerer(question, wanted) is None
    assert arp.answerer(answer, wanted) == "bc:24:11:00:00:01"
    assert arp.answerer(answer, own) is None
    assert arp.answerer(b"short", wanted) is None


def test_the_budget_of_a_return_is_computed_from_timers() -> None:
    assert timers.grace_s(["kube-controller-manager", "--node-monitor-grace-period=1m30s"]) == 90
    assert timers.grace_s(["kube-controller-manager"]) == 40
    budget = power.budget_of(heartbeat_s=10, grace=40)
    assert budget.total_s == 60 + 70 + 40 + 20 + 10
    assert "node grace period 40 s" in str(budget)
    with pytest.raises(ValueError, match="not a duration"):
        duration_s("soon")


def test_a_node_that_only_was_ready_is_not_back() -> None:
    then, now = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC)
    assert power.not_back({"a", "b", "c"}, {"a": then, "b": then}, {"a": now, "b": then}) == ["b", "c"]


def test_a_run_marks_its_namespaces_with_a_valid_label() -> None:
    assert run_by("host.example") == "host-example"
    assert run_by("-") == "unnamed"


def test_the_shape_of_a_machine_counts_sockets() -> None:
    machine = load(find("lab")).machine("srvk8s-master01")
    disk = "local-lvm:vm-1-disk-0,size=20G"
    assert machines.shape(machine, {"cores": 2, "sockets": 2, "memory": "4096", "scsi0": disk}) == []
    assert machines.shape(machine, {"scsi0": disk}) == ["expected 4 cores, found 1", "expected 4096 MiB, found 512"]


def test_the_shape_of_a_machine_has_the_weight_that_was_declared() -> None:
    machine = load(find("lab")).machine("srv-nfs01")
    config = {"cores": 4, "memory": "4096", "scsi0": "local-lvm:vm-1-disk-0,size=20G"}
    assert machines.shape(machine, {**config, "cpuunits": "400"}) == []
    assert machines.shape(machine, config) == ["expected 400 CPU units, found 100"]
    assert machines.shape(machine.model_copy(update={"cpu_units": None}), {**config, "cpuunits": 7}) == []


@pytest.mark.parametrize(
    ("drives", "found_gib"),
    [
        ({"scsi0": "local-lvm:vm-1-disk-0,size=20480M"}, None),
        ({"virtio0": "local-lvm:vm-1-disk-0,discard=on,size=1T"}, None),
        ({"scsi0": "local-lvm:vm-1-disk-0,size=10G"}, "10"),
        ({"scsi0": "local-lvm:vm-1-disk-0,size=2252M", "ide2": "local:iso/any.iso,media=cdrom,size=30G"}, "2.19922"),
        ({"scsihw": "virtio-scsi-pci", "net0": "virtio,bridge=vmbr0"}, "0"),
    ],
)
def test_the_shape_of_a_machine_has_the_disk_that_was_declared_or_a_larger_one(
    drives: dict[str, str], found_gib: str | None
) -> None:
    machine = load(find("lab")).machine("srvk8s-master01")
    expected = [f"expected a disk of 20 GiB, found {found_gib}"] if found_gib else []
    assert machines.shape(machine, {"cores": 4, "memory": 4096, **drives}) == expected


def test_the_room_that_a_guest_sees_is_its_own_disks_each_once() -> None:
    root, boot = "/dev/sda1 19327352832", "/dev/sda15 1073741824"
    told = "\n".join(("Filesystem 1B-blocks", root, "tmpfs 4294967296", boot, root))
    assert nodes.disk_seen(mock.Mock(check_output=mock.Mock(return_value=told))) == 19


@pytest.mark.parametrize(
    ("options", "given_up_s"),
    [("ndots:5", 20), ("timeout:1 attempts:2 ndots:1", 4), ("ndots:1 attempts:3 timeout:1", 6), ("", 20)],
)
def test_when_a_name_is_given_up_is_read_from_the_resolvers_options(options: str, given_up_s: int) -> None:
    assert site.gives_up_after_s(f"nameserver 10.96.0.10\noptions {options}\n") == given_up_s


def test_what_keeps_a_pod_from_being_ready_is_told() -> None:
    waiting = SimpleNamespace(state=SimpleNamespace(waiting=SimpleNamespace(reason="ImagePullBackOff")))
    status = SimpleNamespace(conditions=None, container_statuses=[waiting], phase="Pending")
    assert pods.condition(SimpleNamespace(status=status)) == "ImagePullBackOff"
