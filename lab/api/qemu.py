"""/nodes/{node}/qemu: the VMs."""

from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import Field

from lab import vmconfig
from lab.api import agent, shapes
from lab.api.answers import Data
from lab.api.calls import NODE, SNAPSHOT, VM, Caller
from lab.api.parameters import (
    AtNode,
    AtSnapshot,
    AtVm,
    Boolean,
    ConfigId,
    Count,
    Digest,
    DnsName,
    DriveKey,
    NodeName,
    Reads,
    StorageName,
    Vmid,
    VmOptions,
    one_of,
)
from lab.hypervisor import Hypervisor, snapshot_of
from lab.inventory import Machine
from lab.refusal import Refusal, invalid
from lab.storage import IMAGES


class VmList(AtNode):
    """GET /nodes/{node}/qemu."""

    full: Boolean = False


class Create(VmOptions):
    """POST /nodes/{node}/qemu."""

    start: Boolean = False


class Update(VmOptions):
    """PUT /nodes/{node}/qemu/{vmid}/config."""

    delete: str = ""
    revert: str = ""
    digest: Digest | None = None
    skiplock: Boolean = False

    @property
    def deletes(self) -> tuple[str, ...]:
        """The keys to delete."""
        return _keys(self.delete)

    @property
    def reverts(self) -> tuple[str, ...]:
        """The keys whose pending change is dropped."""
        return _keys(self.revert)


class ReadConfig(AtVm):
    """GET /nodes/{node}/qemu/{vmid}/config."""

    current: Boolean = False
    snapshot: ConfigId | None = None


class Destroy(AtVm):
    """DELETE /nodes/{node}/qemu/{vmid}."""

    purge: Boolean = False
    destroy_unreferenced_disks: Boolean = Field(default=False, alias="destroy-unreferenced-disks")
    skiplock: Boolean = False


class Clone(AtVm):
    """POST /nodes/{node}/qemu/{vmid}/clone."""

    newid: Vmid
    description: str | None = None
    format: Annotated[str, one_of("raw", "qcow2", "vmdk")] | None = None
    full: Boolean | None = None
    name: DnsName | None = None
    storage: StorageName | None = None
    target: NodeName | None = None


class Template(AtVm):
    """POST /nodes/{node}/qemu/{vmid}/template."""

    disk: DriveKey | None = None


class Resize(AtVm):
    """PUT /nodes/{node}/qemu/{vmid}/resize."""

    disk: DriveKey
    size: Annotated[str, Field(pattern=r"^\+?\d+(\.\d+)?[KMGT]?$")]
    digest: Digest | None = None
    skiplock: Boolean = False


class Power(AtVm):
    """POST …/status/reset and resume."""

    skiplock: Boolean = False


class Stop(Power):
    """POST …/status/stop."""

    overrule_shutdown: Boolean = Field(default=False, alias="overrule-shutdown")
    timeout: Count | None = None


class Shutdown(Power):
    """POST …/status/shutdown."""

    force_stop: Boolean = Field(default=False, alias="forceStop")
    timeout: Count | None = None


class Reboot(AtVm):
    """POST …/status/reboot."""

    timeout: Count | None = None


class Suspend(Power):
    """POST …/status/suspend."""

    todisk: Boolean = False


class Snapshot(AtSnapshot):
    """POST …/snapshot."""

    description: str = ""
    vmstate: Boolean = False


class DeleteSnapshot(AtSnapshot):
    """DELETE …/snapshot/{snapname}."""

    force: Boolean = False


class DescribeSnapshot(AtSnapshot):
    """PUT …/snapshot/{snapname}/config."""

    description: str | None = None


class Rollback(AtSnapshot):
    """POST …/snapshot/{snapname}/rollback."""

    start: Boolean = False


class Feature(AtVm):
    """GET …/feature."""

    feature: Annotated[str, one_of("snapshot", "clone", "copy")]
    snapname: ConfigId | None = None


class CloudInitDump(AtVm):
    """GET …/cloudinit/dump."""

    type: Annotated[str, one_of("user", "network", "meta")]


def _keys(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").replace(";", " ").split())


def _check_skiplock(skiplock: bool, caller: str) -> None:
    """In PVE a token never counts as root, not even root's own."""
    if skiplock:
        reason = "Only root may use this option." if caller != "root@pam" else "the lab has no locks to skip"
        raise invalid({"skiplock": reason})


def add_calls(app: FastAPI, hypervisor: Hypervisor) -> None:
    """Add these calls to `app`."""
    _add_listing(app, hypervisor)
    _add_making(app, hypervisor)
    _add_configuring(app, hypervisor)
    _add_power(app, hypervisor)
    _add_snapshots(app, hypervisor)
    agent.add_calls(app, hypervisor)


def _add_listing(app: FastAPI, hypervisor: Hypervisor) -> None:
    @app.get(f"{NODE}/qemu")
    def vms(asked: Annotated[VmList, Depends(Reads(VmList))]) -> Data:
        found = []
        for machine in hypervisor.inventory:
            status = hypervisor.status(machine)
            share = hypervisor.meter.share(f"listed {machine.vmid}", status.cpu_time_s)
            found.append(shapes.vm_listed(machine, status, share, full=asked.full))
        return Data(found)

    @app.get(f"{VM}/status/current")
    def current(asked: Annotated[AtVm, Depends(Reads(AtVm))]) -> Data:
        machine = hypervisor.inventory.get(asked.vmid)
        status = hypervisor.status(machine)
        share = hypervisor.meter.share(f"current {machine.vmid}", status.cpu_time_s)
        return Data(shapes.vm_current(machine, status, share))

    @app.get(f"{VM}/feature")
    def feature(asked: Annotated[Feature, Depends(Reads(Feature))]) -> Data:
        machine = hypervisor.inventory.get(asked.vmid)
        has = {"snapshot": not machine.is_template, "clone": machine.is_template, "copy": True}[asked.feature]
        return Data({"hasFeature": int(has), "nodes": [hypervisor.node]})


def _add_making(app: FastAPI, hypervisor: Hypervisor) -> None:
    @app.post(f"{NODE}/qemu")
    def create(asked: Annotated[Create, Depends(Reads(Create))], caller: Caller) -> Data:
        return Data(hypervisor.create(asked.vmid, asked.options(), asked.start, caller))

    @app.delete(VM)
    def destroy(asked: Annotated[Destroy, Depends(Reads(Destroy))], caller: Caller) -> Data:
        _check_skiplock(asked.skiplock, caller)
        return Data(hypervisor.destroy(asked.vmid, caller))

    @app.post(f"{VM}/clone")
    def clone(asked: Annotated[Clone, Depends(Reads(Clone))], caller: Caller) -> Data:
        source = hypervisor.inventory.get(asked.vmid)
        full = not source.is_template if asked.full is None else asked.full
        if asked.target not in (None, hypervisor.node):
            raise Refusal(500, f"no such cluster node '{asked.target}'")
        if asked.storage is not None:
            hypervisor.storage.store(asked.storage)
            if asked.storage != IMAGES:
                raise invalid({"storage": f"storage '{asked.storage}' does not support vm images"})
        for name in ("storage", "format"):
            if getattr(asked, name) is not None and not full:
                raise Refusal(500, f"parameter '{name}' not allowed for linked clones")
        upid = hypervisor.clone(
            asked.vmid, asked.newid, name=asked.name, full=full, description=asked.description, user=caller
        )
        return Data(upid)

    @app.post(f"{VM}/template")
    def template(asked: Annotated[Template, Depends(Reads(Template))], caller: Caller) -> Data:
        return Data(hypervisor.make_template(asked.vmid, caller))

    @app.put(f"{VM}/resize")
    def resize(asked: Annotated[Resize, Depends(Reads(Resize))], caller: Caller) -> Data:
        _check_skiplock(asked.skiplock, caller)
        return Data(hypervisor.resize(asked.vmid, asked.disk, asked.size, asked.digest, caller))


def _add_configuring(app: FastAPI, hypervisor: Hypervisor) -> None:
    @app.get(f"{VM}/config")
    def config(asked: Annotated[ReadConfig, Depends(Reads(ReadConfig))]) -> Data:
        machine = hypervisor.inventory.get(asked.vmid)
        if asked.snapshot and asked.current:
            both = "cannot use 'snapshot' parameter with 'current'"
            raise invalid({"snapshot": both, "current": both})
        if asked.snapshot:
            return Data(shapes.vm_config(snapshot_of(machine, asked.snapshot), machine.digest))
        return Data(shapes.vm_config(machine.config if asked.current else machine.next_config, machine.digest))

    def check_update(asked: Update, caller: str) -> None:
        _check_skiplock(asked.skiplock, caller)
        if not (asked.options() or asked.deletes or asked.reverts):
            raise Refusal(500, "no options specified")

    @app.put(f"{VM}/config")
    def update(asked: Annotated[Update, Depends(Reads(Update))], caller: Caller) -> Data:
        check_update(asked, caller)
        hypervisor.configure(
            asked.vmid, asked.options(), deletes=asked.deletes, reverts=asked.reverts, digest=asked.digest
        )
        return Data()

    @app.post(f"{VM}/config")
    def update_task(asked: Annotated[Update, Depends(Reads(Update))], caller: Caller) -> Data:
        check_update(asked, caller)
        upid = hypervisor.configure_task(
            asked.vmid,
            asked.options(),
            deletes=asked.deletes,
            reverts=asked.reverts,
            digest=asked.digest,
            user=caller,
        )
        return Data(upid)

    @app.get(f"{VM}/pending")
    def pending(asked: Annotated[AtVm, Depends(Reads(AtVm))]) -> Data:
        return Data(shapes.pending(hypervisor.inventory.get(asked.vmid)))

    @app.get(f"{VM}/cloudinit")
    def cloud_init(asked: Annotated[AtVm, Depends(Reads(AtVm))]) -> Data:
        items = shapes.pending(hypervisor.inventory.get(asked.vmid))
        return Data([item for item in items if vmconfig.CLOUD_INIT_KEYS.fullmatch(item["key"])])

    @app.get(f"{VM}/cloudinit/dump")
    def cloud_init_dump(asked: Annotated[CloudInitDump, Depends(Reads(CloudInitDump))]) -> Data:
        machine = hypervisor.inventory.get(asked.vmid)
        return Data(shapes.cloud_init(machine.vmid, machine.next_config, asked.type))


def _add_power(app: FastAPI, hypervisor: Hypervisor) -> None:
    @app.post(f"{VM}/status/start")
    def start(asked: Annotated[Power, Depends(Reads(Power))], caller: Caller) -> Data:
        _check_skiplock(asked.skiplock, caller)
        return Data(hypervisor.start(asked.vmid, caller))

    @app.post(f"{VM}/status/stop")
    def stop(asked: Annotated[Stop, Depends(Reads(Stop))], caller: Caller) -> Data:
        _check_skiplock(asked.skiplock, caller)
        return Data(hypervisor.stop(asked.vmid, asked.overrule_shutdown, caller))

    @app.post(f"{VM}/status/shutdown")
    def shutdown(asked: Annotated[Shutdown, Depends(Reads(Shutdown))], caller: Caller) -> Data:
        _check_skiplock(asked.skiplock, caller)
        return Data(hypervisor.shutdown(asked.vmid, asked.timeout, asked.force_stop, caller))

    @app.post(f"{VM}/status/reboot")
    def reboot(asked: Annotated[Reboot, Depends(Reads(Reboot))], caller: Caller) -> Data:
        return Data(hypervisor.reboot(asked.vmid, asked.timeout, caller))

    @app.post(f"{VM}/status/reset")
    def reset(asked: Annotated[Power, Depends(Reads(Power))], caller: Caller) -> Data:
        _check_skiplock(asked.skiplock, caller)
        return Data(hypervisor.reset(asked.vmid, caller))

    @app.post(f"{VM}/status/suspend")
    def suspend(asked: Annotated[Suspend, Depends(Reads(Suspend))], caller: Caller) -> Data:
        _check_skiplock(asked.skiplock, caller)
        if asked.todisk:
            raise invalid({"todisk": "a lab guest is suspended in memory only"})
        return Data(hypervisor.suspend(asked.vmid, caller))

    @app.post(f"{VM}/status/resume")
    def resume(asked: Annotated[Power, Depends(Reads(Power))], caller: Caller) -> Data:
        _check_skiplock(asked.skiplock, caller)
        return Data(hypervisor.resume(asked.vmid, caller))


def _add_snapshots(app: FastAPI, hypervisor: Hypervisor) -> None:
    def running(machine: Machine) -> bool:
        return hypervisor.status(machine).state != "stopped"

    @app.get(f"{VM}/snapshot")
    def snapshots(asked: Annotated[AtVm, Depends(Reads(AtVm))]) -> Data:
        machine = hypervisor.inventory.get(asked.vmid)
        return Data(shapes.snapshots(machine, running(machine)))

    @app.post(f"{VM}/snapshot")
    def snapshot(asked: Annotated[Snapshot, Depends(Reads(Snapshot))], caller: Caller) -> Data:
        if asked.vmstate and running(hypervisor.inventory.get(asked.vmid)):
            raise invalid({"vmstate": "a lab guest's memory cannot be kept: leave vmstate out"})
        return Data(hypervisor.snapshot(asked.vmid, asked.snapname, asked.description, caller))

    @app.get(f"{SNAPSHOT}/config")
    def snapshot_config(asked: Annotated[AtSnapshot, Depends(Reads(AtSnapshot))]) -> Data:
        machine = hypervisor.inventory.get(asked.vmid)
        return Data(shapes.vm_config(snapshot_of(machine, asked.snapname), machine.digest))

    @app.put(f"{SNAPSHOT}/config")
    def describe_snapshot(asked: Annotated[DescribeSnapshot, Depends(Reads(DescribeSnapshot))]) -> Data:
        if asked.description is not None:
            hypervisor.describe_snapshot(asked.vmid, asked.snapname, asked.description)
        return Data()

    @app.delete(SNAPSHOT)
    def delete_snapshot(asked: Annotated[DeleteSnapshot, Depends(Reads(DeleteSnapshot))], caller: Caller) -> Data:
        return Data(hypervisor.delete_snapshot(asked.vmid, asked.snapname, caller))

    @app.post(f"{SNAPSHOT}/rollback")
    def rollback(asked: Annotated[Rollback, Depends(Reads(Rollback))], caller: Caller) -> Data:
        return Data(hypervisor.rollback(asked.vmid, asked.snapname, asked.start, caller))
