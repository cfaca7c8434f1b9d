"""What is broken on purpose is healed by whoever comes next, and only that; what each drill does is what there is."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from certificate.verdict import NotExercised
from chaos import scripts
from chaos.drill import down_at_most, planned
from chaos.drills import DRILLS, PAGES, Drill, Moment
from chaos.fault import KINDS, NoSuchFault, OfPower, OnMachine, Struck, kind_named
from chaos.journal import HealFailed, Journal, Wound
from chaos.target import Facts, NobodyNow
from chaos.timers import Budget, Timers
from environments.load import find, load
from environments.model import Machine
from provisioning.action import ActionFailed
from provisioning.session import Session
from provisioning.ssh import Result
from tests import powers

ENVIRONMENT = load(find("lab"))
MACHINES = ENVIRONMENT.machines
WORKERS = ("srvk8s-worker01", "srvk8s-worker02", "srvk8s-worker03")
FACTS = Facts(
    MACHINES,
    endpoint=ENVIRONMENT.kubernetes.control_plane_endpoint,
    announcer="srvk8s-worker02",
    arbitrator="srvdbm-mgm01",
    etcd_leader="srvk8s-master01",
    replicas=dict.fromkeys(WORKERS, 1),
)


class Powers(powers.Powers):
    """A hypervisor that has nothing but power and one network card a machine."""

    def __init__(self) -> None:
        super().__init__({machine.vmid: "running" for machine in MACHINES})
        self.under_way: dict[int, str] = {}  # tasks that somebody began: what a machine will be
        self.cards = {vmid: f"virtio=BC:24:11:00:00:{vmid % 100:02},bridge=vmbr1" for vmid in self.states}

    def settle(self, vmid: int) -> None:
        self.states[vmid] = self.under_way.pop(vmid, self.states[vmid])

    def stop(self, vmid: int) -> None:
        self.states[vmid] = "stopped"

    shutdown = stop

    def suspend(self, vmid: int) -> None:
        self.states[vmid] = "paused"

    def reboot(self, vmid: int) -> None:
        assert self.states[vmid] == "running"

    def config(self, vmid: int) -> dict[str, str]:
        return {"net0": self.cards[vmid]}

    def call(self, method: str, path: str, net0: str) -> None:
        assert method == "put"
        self.cards[int(path.split("/")[1])] = net0


class Heard:
    """A shell that keeps what it is told; `deaf` machines fail at everything."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []
        self.deaf: set[str] = set()
        self.answers: dict[str, str] = {}

    def check(self, machine: Machine, script: str, *, stdin: str = "", timeout_s: float = 0) -> str:
        if machine.name in self.deaf:
            raise ActionFailed("it does not listen", machine=machine.name)
        self.told.append((machine.name, script, stdin))
        return ""

    def run(self, machine: Machine, script: str, *, timeout_s: float = 0) -> Result:
        return Result(0, self.answers.get(machine.name, ""), "")


class Broken:
    """A target of fakes, as a session."""

    def __init__(self) -> None:
        self.powers, self.heard = Powers(), Heard()
        fake = SimpleNamespace(environment=ENVIRONMENT, hypervisor=self.powers, shell=self.heard)
        self.session = cast(Session, fake)


@pytest.fixture
def broken() -> Broken:
    return Broken()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if isinstance(kind, OfPower)])
def test_a_fault_of_the_hypervisor_is_taken_back_once_and_again(name: str, broken: Broken) -> None:
    kind, machine = KINDS[name], MACHINES[0]
    before = dict(broken.powers.cards)
    kind.inject(broken.session, Struck(machine))
    assert name == "reboot" or broken.powers.states[machine.vmid] != "running" or broken.powers.cards != before
    assert name == "reboot" or kind.remains(broken.session, machine)
    kind.heal(broken.session, machine)
    kind.heal(broken.session, machine)
    assert kind.remains(broken.session, machine) == ""
    assert set(broken.powers.states.values()) == {"running"}
    assert broken.powers.cards == before


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if isinstance(kind, OnMachine)])
def test_a_fault_on_a_machine_brings_its_timer_and_all_of_it_is_a_shells(name: str, broken: Broken) -> None:
    kind, (machine, peer) = KINDS[name], MACHINES[:2]
    kind.inject(broken.session, Struck(machine, (peer,), 42))
    kind.heal(broken.session, machine)
    (_, breaks, mends), *_ = broken.heard.told
    assert breaks.index("--on-active=42s") < breaks.rindex(";")
    _, heals, _ = broken.heard.told[-1]
    assert mends in heals
    # Whoever heals waits for a script that somebody began and did not live to see the end of.
    assert breaks.startswith(scripts.apart(""))
    assert heals.startswith(scripts.apart(""))
    assert isinstance(kind, OnMachine)
    for script in (breaks, mends, heals, kind.able(ENVIRONMENT), kind.lasts(ENVIRONMENT)):
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_a_partition_makes_both_sides_deaf_to_each_others_cards(broken: Broken) -> None:
    one, two = MACHINES[:2]
    KINDS["partition"].inject(broken.session, Struck(one, (two,)))
    deaf = {name: re.findall(r"ether saddr \{ (\S+) \}", script) for name, script, _ in broken.heard.told}
    assert deaf == {
        one.name: [broken.powers.cards[two.vmid][7:24].lower()],
        two.name: [broken.powers.cards[one.vmid][7:24].lower()],
    }
    assert KINDS["partition"].marks(Struck(one, (two,))) == (one, two)
    assert KINDS["one-way partition"].marks(Struck(one, (two,))) == (one,)


def test_what_expires_is_set_to_before_anything_is_broken() -> None:
    script = scripts.expiring("x", 30, "false")
    assert script.index("cat >") < script.index("systemd-run") < script.index("false")


def test_the_next_one_heals_what_a_killed_drill_noted(tmp_path: Path, broken: Broken) -> None:
    """Noted before it is done: killed in between, there is nothing to heal, and that is no error."""
    journal = Journal(tmp_path / "broken.json")
    journal.note([Wound("power cut", machine.vmid) for machine in MACHINES[:2]])
    journal.note([Wound("hang", MACHINES[2].vmid)])
    broken.powers.stop(MACHINES[0].vmid)
    broken.powers.suspend(MACHINES[2].vmid)
    broken.powers.stop(MACHINES[5].vmid)
    healed = Journal(tmp_path / "broken.json").heal(broken.session)
    assert len(healed) == 3
    assert [name for name in broken.powers.states.values() if name != "running"] == ["stopped"]
    assert Journal(tmp_path / "broken.json").heal(broken.session) == []


def test_a_machine_is_healed_of_what_is_only_under_way(tmp_path: Path, broken: Broken) -> None:
    """A runner that was killed between asking for a power cut and its end: the machine runs, and soon will not."""
    journal, machine = Journal(tmp_path / "broken.json"), MACHINES[0]
    journal.note([Wound("power cut", machine.vmid)])
    broken.powers.under_way = {machine.vmid: "stopped"}
    journal.heal(broken.session)
    assert (broken.powers.states[machine.vmid], broken.powers.under_way) == ("running", {})


def test_a_wound_of_a_machine_that_is_described_no_more_is_told_and_stays_noted(tmp_path: Path, broken: Broken) -> None:
    journal = Journal(tmp_path / "broken.json")
    journal.note([Wound("power cut", 9999), Wound("power cut", MACHINES[0].vmid)])
    broken.powers.stop(MACHINES[0].vmid)
    with pytest.raises(HealFailed, match=r"(?s)power cut of VM 9999 is NOT healed: .*by hand"):
        journal.heal(broken.session)
    assert journal.held() == [Wound("power cut", 9999)]
    assert broken.powers.states[MACHINES[0].vmid] == "running"


def test_one_of_two_wounds_is_healed_and_the_other_stays_noted(tmp_path: Path, broken: Broken) -> None:
    journal = Journal(tmp_path / "broken.json")
    first, second = Wound("power cut", MACHINES[0].vmid), Wound("power cut", MACHINES[1].vmid)
    journal.note([first])
    journal.note([second])
    broken.powers.stop(MACHINES[0].vmid)
    broken.powers.stop(MACHINES[1].vmid)
    journal.heal(broken.session, [first])
    assert journal.held() == [second]
    assert broken.powers.states[MACHINES[1].vmid] == "stopped"


def test_what_cannot_be_healed_is_told_with_what_to_do_and_stays_noted(tmp_path: Path, broken: Broken) -> None:
    journal = Journal(tmp_path / "broken.json")
    wounds = [Wound("kubelet stopped", MACHINES[0].vmid), Wound("kubelet stopped", MACHINES[1].vmid)]
    journal.note(wounds)
    broken.heard.deaf = {MACHINES[0].name}
    told = f"kubelet stopped of {MACHINES[0].name} is NOT healed: it does not listen\n  by hand: on {MACHINES[0].name}"
    with pytest.raises(HealFailed, match=re.escape(told)):
        journal.heal(broken.session)
    assert journal.held() == wounds[:1]


@pytest.mark.parametrize("fault", ["kubelet stopped", "power cut"])
def test_a_heal_that_changes_nothing_is_no_heal(
    fault: str, tmp_path: Path, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, machine = Journal(tmp_path / "broken.json"), MACHINES[0]
    wounds = [Wound(fault, machine.vmid)]
    journal.note(wounds)
    broken.heard.answers[machine.name] = "kubelet is inactive\n"
    broken.powers.stop(machine.vmid)
    monkeypatch.setattr(type(KINDS[fault]), "heal", lambda *_: None)
    with pytest.raises(
        HealFailed, match=rf"{fault} of {machine.name} is NOT healed: (kubelet is inactive|it is stopped)"
    ):
        journal.heal(broken.session)
    assert journal.held() == wounds


def test_what_was_healed_and_cannot_be_forgotten_is_told(
    tmp_path: Path, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "broken.json")
    journal.note([Wound("power cut", MACHINES[0].vmid)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "_write", full)
    with pytest.raises(HealFailed, match=r"broken.json: No space left on device; .* stays noted"):
        journal.heal(broken.session)


def on_path(folder: Path, **programs: str) -> dict[str, str]:
    """An environment whose programs of these names are these scripts."""
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("script", "systemctl", "told"),
    [
        (scripts.not_running("kubelet"), "echo active", ""),
        (scripts.not_running("kubelet"), "echo activating; exit 3", ""),
        (scripts.not_running("kubelet"), "test $1 = cat || { echo inactive; exit 3; }", "kubelet is inactive\n"),
        (scripts.waiting("x"), "exit 3", ""),
        (scripts.waiting("x"), "test $3 = haproof-x.timer", "the timer that heals it is still set\n"),
        (scripts.STILL_BUSY, "exit 0", "its processors are still busy\n"),
        (scripts.STILL_BUSY, "exit 3", ""),
    ],
)
def test_what_is_left_of_a_fault_is_told(tmp_path: Path, script: str, systemctl: str, told: str) -> None:
    path = on_path(tmp_path, systemctl=systemctl)
    done = subprocess.run(["sh", "-c", script], env=path, capture_output=True, text=True, check=False)
    assert done.stdout == told


@pytest.mark.parametrize(("nft", "told"), [("exit 1", ""), ("exit 0", "packets are still dropped\n")])
def test_a_filter_that_was_not_taken_away_is_told(tmp_path: Path, nft: str, told: str) -> None:
    path = on_path(tmp_path, nft=nft)
    done = subprocess.run(["sh", "-c", scripts.STILL_FILTERED], env=path, capture_output=True, text=True, check=False)
    assert done.stdout == told


@pytest.mark.parametrize("check", [scripts.NEEDS_PROCESSORS, scripts.NEEDS_MEMORY])
@pytest.mark.parametrize(("container", "bound", "blocked"), [(1, 0, False), (0, 0, False), (0, 1, True)])
def test_what_is_its_hosts_is_not_taken_from_it(
    tmp_path: Path, check: str, container: int, bound: int, blocked: bool
) -> None:
    """Exit codes as of the programs: 0 is yes. The last is a container whose bound is “max”, which is none."""
    path = on_path(tmp_path, **{"systemd-detect-virt": f"exit {container}", "grep": f"exit {bound}"})
    done = subprocess.run(["sh", "-c", check], env=path, capture_output=True, text=True, check=False)
    assert ("its host's, which would be" in done.stdout) is blocked


def test_one_hypervisor_is_not_lost_on_purpose(broken: Broken) -> None:
    told = KINDS["hypervisor lost"].blocked(broken.session, MACHINES[0])
    assert told == "the target has one hypervisor, pve: no machine can move to another"
    with pytest.raises(NotExercised, match="one hypervisor"):
        KINDS["hypervisor lost"].inject(broken.session, Struck(MACHINES[0]))


def test_an_unknown_fault_is_told_the_nearest() -> None:
    with pytest.raises(NoSuchFault, match=r"did you mean .*kubelet stopped"):
        kind_named("kublet stopped")


@pytest.mark.parametrize("name", DRILLS)
def test_every_drill_names_faults_and_targets_that_there_are_and_has_budgets(name: str) -> None:
    drill = DRILLS[name]
    for turn in range(drill.turns):
        plan = planned(drill, facts_of(drill), seed=7, turn=turn)
        assert 0 <= down_at_most(plan) <= len(MACHINES)
        struck = [machine for one in plan for machine in one.machines]
        assert all(budget.total_s >= 0 for budget in drill.budgets(Moment(Timers(), FACTS, struck, 9)).values())


def facts_of(drill: Drill) -> Facts:
    """A target that the drill can be run on."""
    return replace(FACTS, announcer=FACTS.endpoint) if drill.name == "endpoint-announcer-power" else FACTS


def budgets(drill: Drill) -> Mapping[str, Budget]:
    """By the timers of the environment; NDB's are those that it sets."""
    struck = [machine for one in planned(drill, facts_of(drill), seed=7) for machine in one.machines]
    live = Timers(ndb_heartbeat_s=ENVIRONMENT.ndb.heartbeat_interval_ms / 1000)
    return drill.budgets(Moment(live, facts_of(drill), struck, drill.hold_s))


@pytest.mark.parametrize("name", DRILLS)
def test_what_stands_in_has_to_before_what_it_stands_in_for_is_back(name: str) -> None:
    """Else a target without a stand-in would be back in time too: its drill could refute nothing."""
    drill = DRILLS[name]
    for layer, budget in budgets(drill).items():
        silence = budget.silence or budget
        # Who waits for the heal says so; whole pages and posts are too few to tell silence from bad luck.
        if not budget.held_s and layer not in (*PAGES, "write/post"):
            assert min(blow.hold_s for blow in drill.blows) > silence.total_s, f"{layer}: {silence}"


def test_a_partition_of_one_is_none() -> None:
    alone = replace(FACTS, machines=tuple(machine for machine in MACHINES if machine.name != "srvdbm02"))
    with pytest.raises(NobodyNow, match="nobody to cut it off from"):
        planned(DRILLS["data-node-partition"], alone, seed=1)


def test_both_sides_of_a_partition_are_asked_whether_they_can(broken: Broken) -> None:
    (one,) = planned(DRILLS["data-node-partition"], FACTS, seed=1)
    assert {machine.name for machine in one.touched} == {"srvdbm01", "srvdbm02"}


def test_turns_strike_one_machine_after_another() -> None:
    struck = [planned(DRILLS["data-node-power"], FACTS, seed=1, turn=turn)[0].machines for turn in range(2)]
    assert {machine.name for machines in struck for machine in machines} == {"srvdbm01", "srvdbm02"}


def names_of(machines: Sequence[Machine]) -> set[str]:
    return {machine.name for machine in machines}


def test_data_nodes_are_cut_off_from_each_other() -> None:
    (one,) = planned(DRILLS["data-node-partition"], FACTS, seed=1)
    assert names_of((*one.machines, *one.struck[0].peers)) == {"srvdbm01", "srvdbm02"}


@pytest.mark.parametrize(("name", "down"), [("arbitrator-trap", 2), ("everything-off", 11), ("kubelet-stopped", 0)])
def test_machines_that_are_down_at_once_are_counted(name: str, down: int) -> None:
    assert down_at_most(planned(DRILLS[name], FACTS, seed=1)) == down


@pytest.mark.parametrize(
    ("struck", "seconds"),
    [(("srvk8s-worker01",), 47), (("srvk8s-worker02",), 47), (("srvdbm01",), 0), (("srvk8s-master01",), 0)],
)
def test_what_visitors_may_notice_follows_from_who_is_struck(struck: tuple[str, ...], seconds: float) -> None:
    machines = [machine for machine in MACHINES if machine.name in struck]
    assert Moment(Timers(), FACTS, machines, 60).visitors().total_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("disk", "told"),
    [
        ("ext4 /", ""),
        ("xfs /", ""),
        ("overlay /", "lies on a disk of its host"),
        ("ext4 /var/lib/lab/disks/240/mnt", "lies on a disk of its host"),
        ("", "it cannot be told"),
    ],
)
def test_only_a_disk_of_the_machines_own_is_filled(tmp_path: Path, disk: str, told: str) -> None:
    findmnt = tmp_path / "findmnt"
    findmnt.write_text(f"#!/bin/sh\ntest -z '{disk}' || echo '{disk}'\n")
    findmnt.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = scripts.bounded("/mnt/shared")
    done = subprocess.run(["sh", "-c", script], env=path, capture_output=True, text=True, check=True)
    assert told in done.stdout
    assert bool(done.stdout) == bool(told)


def test_a_disk_is_filled_to_its_last_block_and_emptied(tmp_path: Path) -> None:
    """With the size of a disk that is small enough to be filled here."""
    stat = tmp_path / "stat"
    stat.write_text("#!/bin/sh\ncase $* in *%f*) echo 12 ;; *) echo 4096 ;; esac\n")
    dd = tmp_path / "dd"
    dd.write_text("#!/bin/sh\n")
    for program in (stat, dd):
        program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", "-ec", scripts.filled(str(tmp_path))], env=path, check=True)
    assert (tmp_path / scripts.FULL).stat().st_size == 12 * 4096
    subprocess.run(["sh", "-ec", scripts.emptied(str(tmp_path))], check=True)
    assert not (tmp_path / scripts.FULL).exists()
