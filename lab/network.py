"""The lab's network: the target's two bridges, and the cables of guests on them."""

import os
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from pyroute2 import IPRoute

from lab import edge, namespace


@dataclass(frozen=True)
class Bridge:
    """A virtual switch of the lab and the address at which the lab itself is reached on it."""

    name: str
    address: IPv4Interface
    mac: str


# The document's two networks, and an Internet of the lab's own where visitors meet the edge.
# Packets never pass from one to the other: the lab is a router that knows no way on, and says so as routers do.
BRIDGES = (
    Bridge("vmbr1", IPv4Interface("172.31.0.1/24"), "02:00:ac:1f:00:01"),
    Bridge("vmbr2", IPv4Interface("10.20.20.1/24"), "02:00:0a:14:14:01"),
    Bridge("vmbr3", IPv4Interface(edge.NETWORK), "02:00:c6:33:64:01"),
)


# Where the way to everywhere else seems to lead. Of an address that no way leads to at all the kernel tells each sender
# once a second at most, and the others wait.
NOWHERE = "nowhere"
# Of a network that is out of reach a UDP socket is told nothing either (icmp_err_convert, `fatal`); of this it is.
REFUSE = ("-j", "REJECT", "--reject-with", "icmp-admin-prohibited")
RULES = (("iptables", "-A", "FORWARD", *REFUSE), ("iptables", "-A", "OUTPUT", "-o", NOWHERE, *REFUSE))
VISITORS = IPv4Interface(f"{edge.VISITORS_ADDRESS}/24")


def build(bridges: tuple[Bridge, ...] = BRIDGES) -> None:
    """Make the bridges in the current network namespace, which has no way out of itself.

    Raises OSError, and CalledProcessError when the kernel takes no rule.
    """
    # Whoever asks for a way hears at once that there is none; silence would keep each of them waiting: a connection for
    # 30 s, and for four whoever asks for a name, as WordPress does in the midst of a visitor's page.
    for rule in RULES:
        subprocess.run(rule, check=True, capture_output=True)
    settings = Path("/proc/sys/net/ipv4")
    (settings / "icmp_ratelimit").write_text("0")
    (settings / "ip_forward").write_text("1")
    # The lab filters nothing between machines of one bridge; without br_netfilter the file is not there.
    hook = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if hook.exists():
        hook.write_text("0")
    with IPRoute() as links:
        links.link("set", index=links.link_lookup(ifname="lo")[0], state="up")
        for bridge in bridges:
            index = _switched_on(links, bridge.name, address=bridge.mac)
            links.addr("add", index=index, address=str(bridge.address.ip), prefixlen=24)
        links.route("add", dst="0.0.0.0/0", oif=_switched_on(links, NOWHERE))


def _switched_on(links: IPRoute, name: str, **more: str) -> int:
    """Make a bridge, and give its index."""
    links.link("add", ifname=name, kind="bridge", **more)
    index: int = links.link_lookup(ifname=name)[0]
    links.link("set", index=index, state="up")
    return index


def visitors(address: IPv4Interface = VISITORS, bridge: str = BRIDGES[-1].name) -> int:
    """Make a network namespace that is on `bridge` alone and knows no way on; it lives while its descriptor is open.

    Call while there is one thread only.
    """
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    namespace.leave_network()
    there = os.open("/proc/self/ns/net", os.O_RDONLY)
    namespace.join_network(here)
    with IPRoute() as links:
        links.link("add", ifname="visitors", kind="veth", peer={"ifname": "eth0", "net_ns_fd": there})
        index = links.link_lookup(ifname="visitors")[0]
        links.link("set", index=index, master=links.link_lookup(ifname=bridge)[0], state="up")
    namespace.join_network(there)
    with IPRoute() as links:
        index = links.link_lookup(ifname="eth0")[0]
        links.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        for name in ("lo", "eth0"):
            links.link("set", index=links.link_lookup(ifname=name)[0], state="up")
    namespace.join_network(here)
    os.close(here)
    return there


def set_link(name: str, up: bool) -> bool:
    """Plug or unplug the interface `name`; False when there is none of that name."""
    with IPRoute() as links:
        found = links.link_lookup(ifname=name)
        if found:
            links.link("set", index=found[0], state="up" if up else "down")
        return bool(found)
