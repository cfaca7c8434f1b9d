"""ARP: asking a segment who has an address, from the runner where it sits on it, else from a machine that does."""

import json
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from certificate.verdict import NotExercised
from environments.model import Machine
from provisioning.ssh import Shell

ETHERTYPE_ARP = 0x0806
REQUEST, REPLY = 1, 2
BROADCAST = b"\xff" * 6
# Hardware Ethernet, protocol IPv4, their lengths, operation; then both sides' addresses (RFC 826).
BODY = struct.Struct("!HHBBH6s4s6s4s")
HEADER = struct.Struct("!6s6sH")
ROUNDS = 5
LISTEN_S = 0.4  # a second answer on one segment comes within milliseconds of the first


@dataclass(frozen=True)
class Segment:
    """An interface of the runner, and its own address there."""

    interface: str
    address: IPv4Address


def request(mac: bytes, source: IPv4Address, wanted: IPv4Address) -> bytes:
    """The frame that asks everybody on a segment who has `wanted`. Pure."""
    body = BODY.pack(1, 0x0800, 6, 4, REQUEST, mac, source.packed, bytes(6), wanted.packed)
    return HEADER.pack(BROADCAST, mac, ETHERTYPE_ARP) + body


def answerer(frame: bytes, wanted: IPv4Address) -> str | None:
    """The MAC address that a frame says has `wanted`, or None when it says no such thing. Pure."""
    if len(frame) < HEADER.size + BODY.size or HEADER.unpack_from(frame)[2] != ETHERTYPE_ARP:
        return None
    _, _, _, _, operation, mac, address, _, _ = BODY.unpack_from(frame, HEADER.size)
    return mac.hex(":") if operation == REPLY and address == wanted.packed else None


def parse_arping(text: str) -> set[str]:
    """The MAC addresses in what any of the programs called arping prints. Pure."""
    return {mac.lower() for mac in re.findall(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}", text)}


def segment_of(address: IPv4Address) -> Segment | None:
    """The runner's interface on the segment of `address`; None when it reaches it by a router, or not at all."""
    try:
        done = subprocess.run(
            ["ip", "-j", "route", "get", str(address)], capture_output=True, text=True, check=True, timeout=5
        )
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    route = json.loads(done.stdout)[0]
    if "gateway" in route or "prefsrc" not in route or route.get("type") == "local":
        return None
    return Segment(str(route["dev"]), IPv4Address(route["prefsrc"]))


def ask(segment: Segment, wanted: IPv4Address, rounds: int) -> list[str]:
    """Every answer to as many requests, as MAC addresses; raises PermissionError without CAP_NET_RAW."""
    heard = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as wire:
        wire.bind((segment.interface, ETHERTYPE_ARP))
        mac = wire.getsockname()[4]
        for _ in range(rounds):
            wire.send(request(mac, segment.address, wanted))
            until = time.monotonic() + LISTEN_S
            while (left := until - time.monotonic()) > 0:
                wire.settimeout(left)
                try:
                    frame = wire.recv(2048)
                except TimeoutError:
                    break
                if found := answerer(frame, wanted):
                    heard.append(found)
    return heard


def who_has(wanted: IPv4Address, shell: Shell, machines: Iterable[Machine], rounds: int = ROUNDS) -> set[str]:
    """The MAC addresses that answer for `wanted` on its segment, asked `rounds` times.

    Raises NotExercised when neither the runner nor any of `machines` can ask.
    """
    if segment := segment_of(wanted):
        try:
            return set(ask(segment, wanted, rounds))
        except PermissionError:
            pass  # an ordinary user's runner: the machines are on the segment too
    found: set[str] = set()
    able = False
    for machine in machines:
        device = f"$(ip route get {wanted} | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p')"
        answer = shell.run(
            machine, f"command -v arping >/dev/null || exit 9; arping -c {rounds} -w {rounds} -I {device} {wanted}"
        )
        if answer.exit_code != 9:
            able = True
            # A machine does not hear itself: another one has to ask as well.
            found |= parse_arping(answer.stdout)
    if not able:
        raise NotExercised("the runner may not send ARP on the segment (CAP_NET_RAW), and no machine has arping")
    return found
