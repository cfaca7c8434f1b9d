"""What is broken on purpose is healed by whoever comes next, and only that."""

from pathlib import Path
from typing import cast

import pytest

from chaos.drill import DRILLS, questions
from chaos.fault import KINDS, Journal
from chaos.target import CANDIDATES
from environments.load import find, load
from environments.model import Environment
from provisioning.hypervisor import Hypervisor

ENVIRONMENT = load(find("lab"))
MACHINES = ENVIRONMENT.machines


class Powers:
    """A hypervisor that has nothing but power."""

    def __init__(self) -> None:
        self.states = {machine.vmid: "running" for machine in MACHINES}

    def power(self, vmid: int) -> str:
        return self.states[vmid]

    def start(self, vmid: int) -> None:
        assert self.states[vmid] == "stopped"
        self.states[vmid] = "running"

    def resume(self, vmid: int) -> None:
        assert self.states[vmid] == "paused"
        self.states[vmid] = "running"

    def stop(self, vmid: int) -> None:
        self.states[vmid] = "stopped"

    shutdown = stop

    def suspend(self, vmid: int) -> None:
        self.states[vmid] = "paused"


@pytest.fixture
def powers() -> Powers:
    return Powers()


@pytest.fixture
def hypervisor(powers: Powers) -> Hypervisor:
    return cast(Hypervisor, powers)


@pytest.mark.parametrize("name", KINDS)
def test_a_fault_breaks_and_its_heal_mends_and_healing_twice_changes_nothing(
    name: str, powers: Powers, hypervisor: Hypervisor
) -> None:
    kind, machine = KINDS[name], MACHINES[0]
    kind.inject(hypervisor, machine)
    assert powers.states[machine.vmid] != "running"
    kind.heal(hypervisor, machine)
    kind.heal(hypervisor, machine)
    assert set(powers.states.values()) == {"running"}


def test_the_next_one_heals_what_a_killed_drill_noted(tmp_path: Path, powers: Powers, hypervisor: Hypervisor) -> None:
    """Noted before it is done: killed in between, there is nothing to heal, and that is no error."""
    journal = Journal(tmp_path / "broken.json")
    journal.note(KINDS["power cut"], MACHINES[:2])
    journal.note(KINDS["hang"], MACHINES[2:3])
    KINDS["power cut"].inject(hypervisor, MACHINES[0])
    KINDS["hang"].inject(hypervisor, MACHINES[2])
    powers.stop(MACHINES[5].vmid)
    healed = Journal(tmp_path / "broken.json").heal(hypervisor, MACHINES)
    assert len(healed) == 3
    assert [name for name in powers.states.values() if name != "running"] == ["stopped"]
    assert Journal(tmp_path / "broken.json").heal(hypervisor, MACHINES) == []


@pytest.mark.parametrize("name", DRILLS)
def test_every_drill_names_a_fault_and_a_target_that_there_are(name: str) -> None:
    drill = DRILLS[name]
    assert drill.fault in KINDS
    assert drill.target in CANDIDATES
    assert drill.hold_s > 0


def test_layers_are_asked_at_the_environments_addresses(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hush")
    edge = ENVIRONMENT.edge.model_copy(update={"ca": None})
    password = {"database_password": f"file:{secret}"}
    site = type(ENVIRONMENT.wordpress).model_validate({**ENVIRONMENT.wordpress.model_dump(), **password})
    environment: Environment = ENVIRONMENT.model_copy(update={"edge": edge, "wordpress": site})
    asked = {question.layer: (question.host, question.port) for question in questions(environment).questions}
    assert asked == {
        "vip": ("172.31.0.100", 80),
        "public": ("198.51.100.1", 443),
        "sql": ("172.31.0.120", 3306),
        "nfs": ("172.31.0.240", 2049),
    }
