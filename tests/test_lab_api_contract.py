"""The lab's Proxmox API against Proxmox's own schema of PVE 9: paths, parameters and answers.

The schema is not part of this repository. It is read from `shared/contracts` beside the checkout, and the tests
that need it are skipped where it is missing.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import ValidationError

from lab.api.calls import API
from lab.api.parameters import Parameters, Reads
from tests.lab_client import IMAGE, TEMPLATE, LabClient

Schema = dict[str, Any]
CONTRACT = Path(__file__).resolve().parents[2] / "shared/contracts/pve-api.json.gz"
QEMU = "/nodes/pve/qemu"
# Where PVE itself does not answer as its schema says, and the lab does as PVE does.
UNTRUE = {
    "GET /cluster/nextid": "the schema says integer, PVE sends a string",
}
# Calls that PVE 9 answers with an error whenever they are made.
ALWAYS_REFUSED = {"GET /cluster/ha/groups"}


@pytest.fixture(scope="module")
def contract() -> Schema:
    if not CONTRACT.exists():
        pytest.skip(f"Proxmox's schema is not part of this repository and there is none at {CONTRACT}")
    schema: Schema = json.loads(gzip.decompress(CONTRACT.read_bytes()))["pve9"]
    return schema


@pytest.fixture
def lab(tmp_path: Path) -> LabClient:
    return LabClient(tmp_path)


@dataclass(frozen=True)
class Endpoint:
    method: str
    path: str
    model: type[Parameters]
    pattern: re.Pattern[str] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    def spellings(self) -> dict[str, bool]:
        """Each parameter as the schema spells it, and whether the lab insists on it."""
        return {info.alias or name: info.is_required() for name, info in self.model.model_fields.items()}

    def accepts(self, name: str, value: object) -> bool:
        try:
            self.model.model_validate({name: value})
        except ValidationError as error:
            return all(each["loc"][0] != name for each in error.errors())
        return True


def endpoints(lab: LabClient) -> Iterator[Endpoint]:
    for route in lab.app.routes:
        if not isinstance(route, APIRoute):
            continue
        readers = [d.call for d in route.dependant.dependencies if isinstance(d.call, Reads)]
        assert len(readers) == 1, f"{route.path} reads its parameters {len(readers)} times"
        path = route.path.removeprefix(API).replace(":path}", "}")
        for method in route.methods or ():
            yield Endpoint(method, path, readers[0].model, route.path_regex)


# ------------------------------------------------------------------ paths and parameters


def test_every_call_of_the_lab_is_one_of_pves(lab: LabClient, contract: Schema) -> None:
    unknown = [each.name for each in endpoints(lab) if each.method not in contract.get(each.path, {})]
    assert unknown == []


def test_every_parameter_of_the_lab_is_one_of_pves(lab: LabClient, contract: Schema) -> None:
    unknown = {
        each.name: extra
        for each in endpoints(lab)
        if (extra := each.spellings().keys() - contract[each.path][each.method]["params"].keys())
    }
    assert unknown == {}


def test_what_pve_requires_the_lab_accepts_and_it_requires_nothing_more(lab: LabClient, contract: Schema) -> None:
    faults = []
    for each in endpoints(lab):
        for name, schema in contract[each.path][each.method]["params"].items():
            mandatory = each.spellings().get(name)
            if not schema.get("optional") and mandatory is None:
                faults.append(f"{each.name}: {name} is not accepted")
            if schema.get("optional") and mandatory and f"{{{name}}}" not in each.path:
                faults.append(f"{each.name}: {name} is insisted on")
    assert faults == []


def test_each_parameter_takes_and_refuses_what_pve_does(lab: LabClient, contract: Schema) -> None:
    faults = []
    for each in endpoints(lab):
        for name in each.spellings():
            schema = contract[each.path][each.method]["params"][name]
            good, bad = samples(schema)
            if not name.endswith("[n]"):
                faults += [
                    f"{each.name}: {name}={value!r} is refused" for value in good if not each.accepts(name, value)
                ]
                faults += [f"{each.name}: {name}={value!r} is accepted" for value in bad if each.accepts(name, value)]
    assert faults == []


def samples(schema: Schema) -> tuple[list[object], list[object]]:
    """Values that the schema takes, and values that it refuses."""
    kind = schema.get("type")
    good: list[object] = list(schema.get("enum") or [])
    bad: list[object] = ["no-such-choice"] if schema.get("enum") else []
    if kind == "boolean":
        good, bad = [1, "0", "yes", "off"], ["maybe", 2, [1, 1]]
    if kind in ("integer", "number"):
        bad += ["x", ""]
        for bound, step in (("minimum", -1), ("maximum", 1)):
            if bound in schema:
                good.append(int(float(schema[bound])))
                bad.append(int(float(schema[bound])) + step)
    if "maxLength" in schema:
        bad.append("a" * (int(schema["maxLength"]) + 1))
    return good, bad


# ------------------------------------------------------------------ answers


SCALARS: dict[str, tuple[type, ...]] = {
    "string": (str, int, float),
    "integer": (int,),
    "number": (int, float),
    "boolean": (int,),
}


def fits(value: object, kind: str) -> bool:
    wanted = {**SCALARS, "array": (list,), "object": (dict,), "null": ()}.get(kind, (object,))
    if kind == "boolean" and value not in (0, 1):
        return False
    return isinstance(value, wanted) and not isinstance(value, bool)


def mismatches(schema: Schema, value: Any, where: str = "data") -> Iterator[str]:
    """Where `value` is not as `schema` says. PVE's strings may be numbers, its booleans are 1 and 0."""
    kind = schema.get("type")
    if value is None and (schema.get("optional") or kind in ("null", None)):
        return
    if not fits(value, str(kind)):
        yield f"{where}: {value!r} is no {kind}"
    elif kind in SCALARS:
        yield from bounds(schema, value, where)
    elif kind == "array":
        for number, item in enumerate(value):
            yield from mismatches(schema.get("items", {}), item, f"{where}[{number}]")
    elif kind == "object":
        for name, each in schema.get("properties", {}).items():
            if name in value:
                yield from mismatches(each, value[name], f"{where}.{name}")
            elif not each.get("optional") and "[n]" not in name:
                yield f"{where}.{name} is missing"


def bounds(schema: Schema, value: Any, where: str) -> Iterator[str]:
    if schema.get("enum") and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str) and "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        yield f"{where}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, int | float):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not float(low) <= value <= float(high):
            yield f"{where}: {value!r} is not between {low} and {high}"


def scenario(lab: LabClient) -> Iterator[tuple[str, str, Any]]:
    """Every call of the lab once or more: method, path, and what was answered."""

    def call(method: str, path: str, **parameters: Any) -> tuple[str, str, Any]:
        data = lab.call(method, path, **parameters)
        if isinstance(data, str) and data.startswith("UPID:"):
            task = lab.hypervisor.tasks.wait(data, 30)
            assert task.exitstatus == "OK", f"{method} {path}: {task.exitstatus}"
        return method, path, data

    lab.put_image()
    yield call("POST", "/access/ticket", username="root@pam", password="not-a-secret")
    yield call("POST", QEMU, **TEMPLATE)
    yield call("POST", f"{QEMU}/9000/template")
    yield call("POST", f"{QEMU}/9000/clone", newid=101, name="vm101", full=1, storage="local-lvm", description="one")
    yield call("POST", f"{QEMU}/101/config", ipconfig0="ip=172.31.0.11/24", onboot=1, tags="b;a")
    yield call("PUT", f"{QEMU}/101/config", cores=2, sshkeys="ssh-ed25519%20AAAA%20x", net1="virtio,bridge=vmbr2")
    yield call("PUT", f"{QEMU}/101/resize", disk="scsi0", size="+1G")
    yield call("POST", f"{QEMU}/101/snapshot", snapname="one")
    yield call("PUT", f"{QEMU}/101/snapshot/one/config", description="first")
    yield call("POST", f"{QEMU}/101/snapshot/one/rollback", start=1)
    yield call("PUT", f"{QEMU}/101/config", memory=2048)
    for path in ("", "/101/status/current", "/101/config", "/101/pending", "/101/cloudinit", "/101/snapshot"):
        yield call("GET", f"{QEMU}{path}")
    yield call("GET", f"{QEMU}/101/snapshot/one/config")
    yield call("GET", f"{QEMU}/101/cloudinit/dump", type="user")
    yield call("GET", f"{QEMU}/101/feature", feature="snapshot")
    yield call("POST", f"{QEMU}/101/agent/ping")
    started = call("POST", f"{QEMU}/101/agent/exec", command=["hostname"])
    yield started
    yield call("GET", f"{QEMU}/101/agent/exec-status", pid=started[2]["pid"])
    for name in ("network-get-interfaces", "get-osinfo", "get-host-name"):
        yield call("GET", f"{QEMU}/101/agent/{name}")
    for path in ("/version", "/access/permissions", "/nodes", "/nodes/pve/version", "/nodes/pve/status"):
        yield call("GET", path)
    for path in ("status", "resources", "nextid", "tasks", "options"):
        yield call("GET", f"/cluster/{path}")
    for path in ("resources", "rules", "status/current"):
        yield call("GET", f"/cluster/ha/{path}")
    for path in ("network", "network/vmbr1", "tasks", "storage", "storage/local/status", "storage/local-lvm/content"):
        yield call("GET", f"/nodes/pve/{path}")
    yield call("GET", "/nodes/pve/storage/local/content")
    yield call("GET", "/nodes/pve/storage/local/content/local:import/debian-12.raw")
    yield call("GET", "/nodes/pve/storage/local-lvm/content/local-lvm:vm-101-disk-0")
    upid = lab.call("GET", "/nodes/pve/tasks")[0]["upid"]
    yield call("GET", f"/nodes/pve/tasks/{upid}/status")
    yield call("GET", f"/nodes/pve/tasks/{upid}/log")
    for action in ("suspend", "resume", "reboot", "reset", "shutdown", "start", "stop"):
        yield call("POST", f"{QEMU}/101/status/{action}")
    yield call("DELETE", f"{QEMU}/101/snapshot/one")
    yield call("DELETE", f"{QEMU}/101", purge=1)
    # Downloaded already: the task compares checksums and is done, whatever the address.
    yield call(
        "POST",
        "/nodes/pve/storage/local/download-url",
        url="http://127.0.0.1:1/debian-12.raw",
        content="import",
        filename="debian-12.raw",
        checksum=hashlib.sha256(IMAGE).hexdigest(),
        checksum__algorithm="sha256",
    )
    yield call("DELETE", "/nodes/pve/storage/local/content/local:import/debian-12.raw")


def test_every_answer_is_as_pves_schema_says(lab: LabClient, contract: Schema) -> None:
    known = list(endpoints(lab))
    seen: set[str] = set()
    faults: list[str] = []
    for method, path, data in scenario(lab):
        each = next(e for e in known if e.method == method and e.pattern.fullmatch(API + path))
        seen.add(each.name)
        schema = contract[each.path][method]["returns"]
        found = list(mismatches(schema, data))
        if each.name in UNTRUE:
            assert found, f"{each.name} is as the schema says after all: {UNTRUE[each.name]}"
        else:
            faults += [f"{each.name}: {fault}" for fault in found]
    assert faults == []
    assert {e.name for e in known} - seen == ALWAYS_REFUSED


def test_a_wrong_answer_would_be_noticed() -> None:
    schema: Schema = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "vmid": {"type": "integer", "minimum": 100},
                "status": {"type": "string", "enum": ["running", "stopped"]},
                "template": {"type": "boolean", "optional": 1},
            },
        },
    }
    assert list(mismatches(schema, [{"vmid": 100, "status": "running", "more": 1}])) == []
    wrongs: list[Any] = [
        {},
        [{"vmid": 100}],
        [{"vmid": 99, "status": "running"}],
        [{"vmid": "100", "status": "running"}],
    ]
    for wrong in wrongs:
        assert list(mismatches(schema, wrong)), wrong
    assert list(mismatches(schema, [{"vmid": 100, "status": "paused"}]))
    assert list(mismatches(schema, [{"vmid": 100, "status": "running", "template": True}]))
