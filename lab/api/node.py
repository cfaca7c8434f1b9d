"""/nodes/{node}: the node itself, its networks and its tasks."""

import os
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import Field

from lab import host
from lab.api import shapes
from lab.api.answers import Data
from lab.api.calls import NODE
from lab.api.cluster import VERSION, version
from lab.api.parameters import AtNode, Boolean, Count, Integer, Reads, Vmid, one_of
from lab.hypervisor import Hypervisor
from lab.refusal import Refusal
from lab.tasks import Task

BRIDGE_TYPES = (None, "bridge", "any_bridge", "any_local_bridge")


class Networks(AtNode):
    """GET /nodes/{node}/network."""

    type: (
        Annotated[
            str,
            one_of(
                *[
                    "bridge",
                    "bond",
                    "eth",
                    "alias",
                    "vlan",
                    "fabric",
                    "OVSBridge",
                    "OVSBond",
                    "OVSPort",
                    "OVSIntPort",
                    "vnet",
                    "any_bridge",
                    "any_local_bridge",
                    "include_sdn",
                ]
            ),
        ]
        | None
    ) = None


class Network(AtNode):
    """GET /nodes/{node}/network/{iface}."""

    iface: Annotated[str, Field(min_length=2, max_length=20)]


class TaskList(AtNode):
    """GET /nodes/{node}/tasks."""

    errors: Boolean = False
    limit: Count = 50
    since: Integer | None = None
    source: Annotated[str, one_of("archive", "active", "all")] = "archive"
    start: Count = 0
    typefilter: str | None = None
    until: Integer | None = None
    userfilter: str | None = None
    vmid: Vmid | None = None

    def wants(self, task: Task) -> bool:
        """Whether the list is to have this task."""
        ended = task.exitstatus is not None
        return (
            (self.source == "all" or ended == (self.source == "archive"))
            and not (self.errors and task.exitstatus in (None, "OK"))
            and (self.typefilter or "") in task.type
            and (self.userfilter or "").lower() in task.user.lower()
            and self.vmid in (None, int(task.id) if task.id.isdigit() else -1)
            and (self.since or 0) <= task.starttime
            and (self.until is None or task.starttime <= self.until)
        )


class OneTask(AtNode):
    """GET /nodes/{node}/tasks/{upid}/status."""

    upid: str


class TaskLog(OneTask):
    """GET /nodes/{node}/tasks/{upid}/log."""

    limit: Count = 50
    start: Count = 0


def add_calls(app: FastAPI, hypervisor: Hypervisor) -> None:
    """Add these calls to `app`."""

    @app.get(f"{NODE}/version")
    def get_version(_: Annotated[AtNode, Depends(Reads(AtNode))]) -> Data:
        return Data(version())

    @app.get(f"{NODE}/status")
    def status(_: Annotated[AtNode, Depends(Reads(AtNode))]) -> Data:
        memory, cpus, usage, kernel = host.memory(), host.cpus(), hypervisor.storage.usage(), os.uname()
        return Data(
            {
                "uptime": host.uptime_s(),
                "loadavg": [f"{load:.2f}" for load in os.getloadavg()],
                "cpu": hypervisor.meter.share("node status", host.busy_s()) / cpus.count,
                "cpuinfo": {
                    "cpus": cpus.count,
                    "cores": cpus.count // cpus.sockets,
                    "sockets": cpus.sockets,
                    "model": cpus.model,
                    "mhz": cpus.mhz,
                },
                "memory": {
                    "total": memory.total,
                    "used": memory.used,
                    "free": memory.free,
                    "available": memory.available,
                },
                "rootfs": {"total": usage.total, "used": usage.used, "avail": usage.avail, "free": usage.avail},
                "current-kernel": {
                    "sysname": kernel.sysname,
                    "release": kernel.release,
                    "version": kernel.version,
                    "machine": kernel.machine,
                },
                "boot-info": {"mode": "efi" if os.path.exists("/sys/firmware/efi") else "legacy-bios"},
                "pveversion": f"pve-manager/{VERSION}/{version()['repoid']}",
            }
        )

    @app.get(f"{NODE}/network")
    def networks(asked: Annotated[Networks, Depends(Reads(Networks))]) -> Data:
        shown = hypervisor.bridges if asked.type in BRIDGE_TYPES else ()
        return Data([shapes.bridge(bridge, number) for number, bridge in enumerate(shown, start=3)])

    @app.get(f"{NODE}/network/{{iface}}")
    def network(asked: Annotated[Network, Depends(Reads(Network))]) -> Data:
        for number, bridge in enumerate(hypervisor.bridges, start=3):
            if bridge.name == asked.iface:
                return Data(shapes.bridge(bridge, number))
        raise Refusal(400, "Parameter verification failed.", {"iface": "interface does not exist"})

    @app.get(f"{NODE}/tasks")
    def tasks(asked: Annotated[TaskList, Depends(Reads(TaskList))]) -> Data:
        wanted = [task for task in reversed(tuple(hypervisor.tasks)) if asked.wants(task)]
        shown = wanted[asked.start : asked.start + asked.limit]
        return Data([shapes.task_listed(task) for task in shown], total=len(wanted))

    @app.get(f"{NODE}/tasks/{{upid}}/status")
    def task_status(asked: Annotated[OneTask, Depends(Reads(OneTask))]) -> Data:
        return Data(shapes.task_status(hypervisor.tasks.get(asked.upid)))

    @app.get(f"{NODE}/tasks/{{upid}}/log")
    def task_log(asked: Annotated[TaskLog, Depends(Reads(TaskLog))]) -> Data:
        log = hypervisor.tasks.get(asked.upid).log or ("no content",)
        lines = [{"n": number, "t": line} for number, line in enumerate(log, start=1)]
        last = asked.start + asked.limit if asked.limit else None
        return Data(lines[asked.start : last], total=len(log))
