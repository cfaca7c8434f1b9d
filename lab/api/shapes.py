"""What the lab knows, in the fields PVE's clients read. Pure: objects in, JSON values out."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from lab import vmconfig
from lab.driver import GuestStatus, Interface
from lab.hypervisor import Bridge
from lab.inventory import Machine
from lab.storage import Store, Usage, Volume
from lab.tasks import Task
from lab.vmconfig import Config, Value

Fields = dict[str, Any]


def _known(**fields: object) -> Fields:
    """Leave out what is None: PVE does not send what it does not know."""
    return {key: value for key, value in fields.items() if value is not None}


def task_of(task: Task) -> Fields:
    """The fields that every view of a task has."""
    user, _, token = task.user.partition("!")
    fields = _known(
        upid=task.upid,
        node=task.node,
        pid=task.pid,
        pstart=task.pstart,
        starttime=task.starttime,
        type=task.type,
        id=task.id,
        user=user,
    )
    return {**fields, "tokenid": token} if token else fields


def task_status(task: Task) -> Fields:
    """A task as its status endpoint shows it."""
    running = task.exitstatus is None
    return {**task_of(task), "status": "running" if running else "stopped", **_known(exitstatus=task.exitstatus)}


def task_listed(task: Task) -> Fields:
    """A task as lists show it: `status` is the exit status there."""
    return {**task_of(task), **_known(endtime=task.endtime, status=task.exitstatus)}


def vm_use(machine: Machine, status: GuestStatus, cpu_share: float) -> Fields:
    """What a VM uses and may use: CPU as a share of its cores, memory and disk in bytes, times in seconds."""
    root = vmconfig.root_drive(machine.config)
    cores = vmconfig.cores(machine.config)
    return {
        "cpu": cpu_share / cores,
        "mem": status.memory_bytes,
        "maxmem": vmconfig.memory_mib(machine.config) * vmconfig.MIB,
        "maxdisk": root[1].size_bytes if root else 0,
        "disk": 0,  # PVE sends 0 too: it does not look into a VM's disk
        "uptime": status.uptime_s,
    }


def vm_listed(machine: Machine, status: GuestStatus, cpu_share: float, *, full: bool) -> Fields:
    """A VM as the list of a node's VMs shows it; what QEMU itself says only where that is asked in `full`."""
    running = status.state != "stopped"
    return {
        "vmid": machine.vmid,
        "name": machine.name,
        "status": "running" if running else "stopped",
        "cpus": vmconfig.cores(machine.config),
        "serial": int("serial0" in machine.config),
        **vm_use(machine, status, cpu_share),
        **_known(
            pid=status.pid,
            tags=machine.config.get("tags"),
            lock=machine.lock,
            template=1 if machine.is_template else None,
            qmpstatus=status.state if full else None,
        ),
    }


def vm_current(machine: Machine, status: GuestStatus, cpu_share: float) -> Fields:
    """A VM as its own status shows it."""
    return {
        **vm_listed(machine, status, cpu_share, full=True),
        "agent": int(vmconfig.agent_enabled(machine.config)),
        "ha": {"managed": 0},
    }


def vm_resource(machine: Machine, status: GuestStatus, cpu_share: float, node: str) -> Fields:
    """A VM as /cluster/resources shows it."""
    return {
        "id": f"qemu/{machine.vmid}",
        "type": "qemu",
        "node": node,
        "vmid": machine.vmid,
        "name": machine.name,
        "status": "stopped" if status.state == "stopped" else "running",
        "template": int(machine.is_template),
        "maxcpu": vmconfig.cores(machine.config),
        **vm_use(machine, status, cpu_share),
        **_known(tags=machine.config.get("tags"), lock=machine.lock),
    }


def vm_config(config: Mapping[str, Value], digest: str) -> Fields:
    """A configuration as PVE sends it."""
    shown: Fields = {key: value for key, value in config.items() if key != "snapstate"}
    return {**shown, "digest": digest}


def pending(machine: Machine) -> list[Fields]:
    """Each key with its value now and, where the next start changes it, then."""
    listed = []
    for key in sorted(machine.config.keys() | machine.pending.keys()):
        item = {"key": key, **_known(value=machine.config.get(key))}
        if key in machine.pending:
            after = machine.pending[key]
            item |= {"delete": 1} if after is None else {"pending": after}
        listed.append(item)
    return listed


def snapshots(machine: Machine, running: bool) -> list[Fields]:
    """The snapshots and, last, the VM as it is."""
    listed = [
        {
            "name": name,
            "snaptime": kept["snaptime"],
            "vmstate": 0,
            "description": kept.get("description", ""),
            **_known(parent=kept.get("parent"), snapstate=kept.get("snapstate")),
        }
        for name, kept in machine.snapshots.items()
    ]
    now = {
        "name": "current",
        "digest": machine.digest,
        "running": int(running),
        "description": "You are here!",
        **_known(parent=machine.config.get("parent")),
    }
    return [*listed, now]


def interface(one: Interface) -> Fields:
    """An interface as the guest agent shows it."""
    return {
        "name": one.name,
        "hardware-address": one.mac.lower(),
        "ip-addresses": [
            {"ip-address": str(address.ip), "ip-address-type": "ipv4", "prefix": address.network.prefixlen}
            for address in one.addresses
        ],
    }


def os_info(release: Mapping[str, str], kernel: Mapping[str, str]) -> Fields:
    """What guest-get-osinfo answers, from /etc/os-release and uname."""
    return _known(
        **{
            "id": release.get("ID"),
            "name": release.get("NAME"),
            "pretty-name": release.get("PRETTY_NAME"),
            "version": release.get("VERSION"),
            "version-id": release.get("VERSION_ID"),
            "kernel-release": kernel["release"],
            "kernel-version": kernel["version"],
            "machine": kernel["machine"],
        }
    )


def bridge(one: Bridge, priority: int) -> Fields:
    """A bridge as the node's list of networks shows it."""
    return {
        "iface": one.name,
        "type": "bridge",
        "active": 1,
        "autostart": 1,
        "method": "static",
        "method6": "manual",
        "families": ["inet"],
        "address": str(one.address.ip),
        "netmask": str(one.address.network.prefixlen),
        "cidr": str(one.address),
        "bridge_ports": "",
        "priority": priority,
    }


def store_status(store: Store, usage: Usage) -> Fields:
    """A storage's own status."""
    return {
        "type": store.type,
        "content": ",".join(store.content),
        "active": 1,
        "enabled": 1,
        "shared": 0,
        "total": usage.total,
        "used": usage.used,
        "avail": usage.avail,
    }


def store_listed(store: Store, usage: Usage) -> Fields:
    """A storage as the node lists it."""
    return {"storage": store.name, **store_status(store, usage), "used_fraction": usage.used / usage.total}


def store_resource(store: Store, usage: Usage, node: str) -> Fields:
    """A storage as /cluster/resources shows it."""
    return {
        "id": f"storage/{node}/{store.name}",
        "type": "storage",
        "node": node,
        "storage": store.name,
        "plugintype": store.type,
        "content": ",".join(store.content),
        "status": "available",
        "shared": 0,
        "disk": usage.used,
        "maxdisk": usage.total,
    }


def volume(one: Volume) -> Fields:
    """A volume as a storage lists it."""
    return _known(
        volid=one.volid, content=one.content, format=one.format, size=one.size, ctime=one.ctime, vmid=one.vmid
    )


def cloud_init(vmid: int, config: Config, kind: str) -> str:
    """What cloud-init would be told: the `user`, `network` or `meta` document."""
    spec = vmconfig.guest_spec(vmid, config)
    if kind == "meta":
        return yaml.safe_dump({"instance-id": str(config.get("vmgenid", vmid))})
    if kind == "network":
        cards = [
            {
                "type": "physical",
                "name": f"eth{nic.index}",
                "mac_address": nic.mac.lower(),
                "subnets": [
                    _known(
                        type="static",
                        address=str(nic.address.ip),
                        netmask=str(nic.address.netmask),
                        gateway=str(nic.gateway) if nic.gateway else None,
                    )
                ]
                if nic.address
                else [],
            }
            for nic in spec.nics
        ]
        servers = [word for word in re.split(r"[;,\s]+", str(config.get("nameserver", ""))) if word]
        search = [word for word in re.split(r"[;,\s]+", str(config.get("searchdomain", ""))) if word]
        names: list[Fields] = [{"type": "nameserver", "address": servers, "search": search}] if servers else []
        return yaml.safe_dump({"version": 1, "config": [*cards, *names]}, sort_keys=False)
    user = {
        "hostname": spec.name,
        "manage_etc_hosts": True,
        "fqdn": spec.name,
        "user": spec.user,
        "ssh_authorized_keys": list(spec.authorized_keys),
        "chpasswd": {"expire": False},
        "users": ["default"],
        "package_upgrade": bool(config.get("ciupgrade", 1)),
    }
    return "#cloud-config\n" + yaml.safe_dump(user, sort_keys=False)
