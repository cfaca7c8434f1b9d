"""Guests: the operating systems of machines, asked by testinfra over SSH, all at once."""

import json
import shlex
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any, TypeVar

import testinfra

from environments.model import Machine
from provisioning.ssh import Shell

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Guests:
    """Asks questions of machines; a question takes testinfra's host, and should cost few round trips."""

    shell: Shell

    def host(self, machine: Machine) -> Any:
        """Testinfra's host for `machine`, as root.

        No connection is shared: a shared one outlives the run as a process that nobody ends.
        """
        return testinfra.get_host(
            f"ssh://{self.shell.environment.address(machine)}",
            ssh_extra_args=shlex.join(self.shell.options()),
            controlpersist=0,
            sudo=True,
        )

    def ask(self, machines: Iterable[Machine], question: Callable[[Any], Answer]) -> dict[str, Answer]:
        """The answer of every machine by name; raises what the question raises."""
        asked = tuple(machines)
        with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
            answers = pool.map(lambda machine: question(self.host(machine)), asked)
            return dict(zip((machine.name for machine in asked), answers, strict=True))


def addresses_by_mac(host: Any) -> dict[str, set[IPv4Interface]]:
    """The global IPv4 addresses that a guest has, by the MAC address of their card."""
    return parse_addresses(host.check_output("ip -j address show"))


def parse_addresses(text: str) -> dict[str, set[IPv4Interface]]:
    """What `ip -j address show` prints, as global IPv4 addresses by MAC address in lower case. Pure."""
    found: dict[str, set[IPv4Interface]] = {}
    for link in json.loads(text):
        for info in link.get("addr_info", []):
            if info.get("family") == "inet" and info.get("scope") == "global":
                interface = IPv4Interface(f"{info['local']}/{info['prefixlen']}")
                found.setdefault(str(link.get("address", "")).lower(), set()).add(interface)
    return found
