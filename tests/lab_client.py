"""A lab's API in this process, over a fake driver, and the calls that tests make of it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from lab.api.app import create_app
from lab.api.auth import Auth
from lab.driver import Driver
from lab.hypervisor import Hypervisor
from lab.paths import Paths
from tests.fake_driver import FakeDriver

TOKEN = "root@pam!haproof"
SECRET = "0d6f7b3c-1111-4222-8333-944444444444"
PASSWORD = "not-a-secret"
IMAGE = b"a root file system\n" * 1000
TEMPLATE = {
    "vmid": 9000,
    "name": "debian-12",
    "scsi0": "local-lvm:0,import-from=local:import/debian-12.raw",
    "ide2": "local-lvm:cloudinit",
    "net0": "virtio,bridge=vmbr1",
    "agent": "1",
    "boot": "order=scsi0",
    "serial0": "socket",
    "ostype": "l26",
    "scsihw": "virtio-scsi-pci",
    "cores": 1,
    "memory": 1024,
    "tags": "haproof-template",
}


class LabClient:
    """A lab whose state is in `folder`; may be made again over the same folder, as after a restart."""

    def __init__(self, folder: Path, driver: FakeDriver | None = None, *, lock_timeout_s: float = 10.0) -> None:
        self.driver = driver or FakeDriver()
        typed: Driver = self.driver
        self.paths = Paths(folder / "state", folder / "run", folder / "cache")
        self.hypervisor = Hypervisor(self.paths, typed, lock_timeout_s=lock_timeout_s)
        self.auth = Auth({TOKEN: SECRET}, password=PASSWORD)
        self.app: FastAPI = create_app(self.hypervisor, self.auth)
        self.headers = {"Authorization": f"PVEAPIToken={TOKEN}={SECRET}"}

    def put_image(self, name: str = "debian-12.raw") -> None:
        (self.paths.state / "storage/local/import" / name).write_bytes(IMAGE)

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        """A bare request of `path` below /api2/json, in this process; a fault of the lab's own raises here."""

        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="https://pve:8006/api2/json") as client:
                return await client.request(method, path, **how)

        return asyncio.run(exchange())

    def send(self, method: str, path: str, **parameters: Any) -> httpx.Response:
        """A request with the token and form parameters; `__` in a name stands for a hyphen."""
        named = {key.replace("__", "-"): value for key, value in parameters.items()}
        how = {"data": named} if method in ("POST", "PUT") else {"params": named}
        return self.request(method, path, headers=self.headers, **how)

    def call(self, method: str, path: str, **parameters: Any) -> Any:
        """As `send`, and what it answered; an error fails the test."""
        response = self.send(method, path, **parameters)
        assert response.status_code == 200, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()["data"]

    def task(self, method: str, path: str, **parameters: Any) -> str:
        """As `call` of something that answers a UPID; waits for the task and returns its exit status."""
        task = self.hypervisor.tasks.wait(self.call(method, path, **parameters), 30)
        assert task.exitstatus is not None, f"{method} {path}: still running"
        return task.exitstatus

    def make_template(self) -> None:
        """Have the template 9000."""
        self.put_image()
        assert self.task("POST", "/nodes/pve/qemu", **TEMPLATE) == "OK"
        assert self.task("POST", "/nodes/pve/qemu/9000/template") == "OK"

    def make_vm(self, vmid: int, *, start: bool = False, **options: Any) -> None:
        """Have a clone of the template."""
        assert self.task("POST", "/nodes/pve/qemu/9000/clone", newid=vmid, name=f"vm{vmid}", full=1) == "OK"
        if options:
            self.call("PUT", f"/nodes/pve/qemu/{vmid}/config", **options)
        if start:
            assert self.task("POST", f"/nodes/pve/qemu/{vmid}/status/start") == "OK"

    def config(self, vmid: int, **parameters: Any) -> Mapping[str, Any]:
        """The VM's configuration."""
        found: Mapping[str, Any] = self.call("GET", f"/nodes/pve/qemu/{vmid}/config", **parameters)
        return found
