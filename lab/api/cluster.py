"""/version, /nodes and /cluster: the one node as a cluster of its own."""

import hashlib
from typing import Annotated

from fastapi import Depends, FastAPI

from lab import certificates, host
from lab.api import shapes
from lab.api.answers import Data
from lab.api.calls import API, CLUSTER
from lab.api.parameters import Parameters, Reads, Vmid, one_of
from lab.hypervisor import Hypervisor
from lab.refusal import Refusal, invalid

# The release whose schema the lab keeps to; clients branch on it (PVE 9: HA rules instead of groups).
RELEASE, VERSION = "9.1", "9.1.3"


class Resources(Parameters):
    """GET /cluster/resources."""

    type: Annotated[str, one_of("vm", "storage", "node", "sdn")] | None = None


class NextId(Parameters):
    """GET /cluster/nextid."""

    vmid: Vmid | None = None


class HaResources(Parameters):
    """GET /cluster/ha/resources."""

    type: Annotated[str, one_of("ct", "vm")] | None = None


class HaRules(Parameters):
    """GET /cluster/ha/rules."""

    resource: str | None = None
    type: Annotated[str, one_of("node-affinity", "resource-affinity")] | None = None


def version() -> dict[str, str]:
    """What PVE the lab is."""
    return {"version": VERSION, "release": RELEASE, "repoid": hashlib.sha256(b"haproof lab").hexdigest()[:16]}


def add_calls(app: FastAPI, hypervisor: Hypervisor) -> None:
    """Add these calls to `app`."""
    node = hypervisor.node

    def node_use() -> dict[str, object]:
        memory, cpus = host.memory(), host.cpus()
        usage = hypervisor.storage.usage()
        return {
            "cpu": hypervisor.meter.share("node", host.busy_s()) / cpus.count,
            "maxcpu": cpus.count,
            "mem": memory.used,
            "maxmem": memory.total,
            "disk": usage.used,
            "maxdisk": usage.total,
            "uptime": host.uptime_s(),
        }

    @app.get(f"{API}/version")
    def get_version(_: Annotated[Parameters, Depends(Reads(Parameters))]) -> Data:
        return Data(version())

    @app.get(f"{API}/nodes")
    def nodes(_: Annotated[Parameters, Depends(Reads(Parameters))]) -> Data:
        certificate = hypervisor.state / "pve-ssl.pem"
        known = {"ssl_fingerprint": certificates.fingerprint(certificate)} if certificate.exists() else {}
        one = {"node": node, "id": f"node/{node}", "type": "node", "status": "online", "level": ""}
        return Data([{**one, **known, **node_use()}])

    @app.get(f"{CLUSTER}/status")
    def status(_: Annotated[Parameters, Depends(Reads(Parameters))]) -> Data:
        # A node that never joined a cluster has no entry of type cluster.
        address = str(hypervisor.bridges[0].address.ip)
        one = {"type": "node", "id": f"node/{node}", "name": node, "ip": address, "nodeid": 0}
        return Data([{**one, "local": 1, "online": 1, "level": ""}])

    @app.get(f"{CLUSTER}/resources")
    def resources(asked: Annotated[Resources, Depends(Reads(Resources))]) -> Data:
        found: list[dict[str, object]] = []
        if asked.type in (None, "vm"):
            for machine in hypervisor.inventory:
                use = hypervisor.status(machine)
                share = hypervisor.meter.share(f"resource {machine.vmid}", use.cpu_time_s)
                found.append(shapes.vm_resource(machine, use, share, node))
        if asked.type in (None, "node"):
            one = {"id": f"node/{node}", "type": "node", "node": node, "status": "online", "level": ""}
            found.append({**one, **node_use()})
        if asked.type in (None, "storage"):
            usage = hypervisor.storage.usage()
            found += [shapes.store_resource(store, usage, node) for store in hypervisor.storage.stores.values()]
        return Data(found)

    @app.get(f"{CLUSTER}/nextid")
    def next_id(asked: Annotated[NextId, Depends(Reads(NextId))]) -> Data:
        if asked.vmid is not None and asked.vmid in hypervisor.inventory:
            raise invalid({"vmid": f"VM {asked.vmid} already exists"})
        # A string, though the schema says integer.
        return Data(str(asked.vmid or hypervisor.inventory.next_id()))

    @app.get(f"{CLUSTER}/tasks")
    def tasks(_: Annotated[Parameters, Depends(Reads(Parameters))]) -> Data:
        return Data([shapes.task_listed(task) for task in reversed(tuple(hypervisor.tasks))])

    @app.get(f"{CLUSTER}/options")
    def options(_: Annotated[Parameters, Depends(Reads(Parameters))]) -> Data:
        return Data({"keyboard": "en-us", "mac_prefix": "BC:24:11"})

    @app.get(f"{CLUSTER}/ha/resources")
    def ha_resources(_: Annotated[HaResources, Depends(Reads(HaResources))]) -> Data:
        return Data([])

    @app.get(f"{CLUSTER}/ha/rules")
    def ha_rules(_: Annotated[HaRules, Depends(Reads(HaRules))]) -> Data:
        return Data([])

    @app.get(f"{CLUSTER}/ha/groups")
    def ha_groups(_: Annotated[Parameters, Depends(Reads(Parameters))]) -> Data:
        raise Refusal(500, "cannot index groups: ha groups have been migrated to rules")

    @app.get(f"{CLUSTER}/ha/status/current")
    def ha_status(_: Annotated[Parameters, Depends(Reads(Parameters))]) -> Data:
        return Data([{"id": "quorum", "type": "quorum", "node": node, "status": "OK", "quorate": 1}])
