"""The Proxmox VE API as provisioning, steps and chaos use it: facts read, operations that await their task."""

import logging
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException

from environments.model import Environment
from environments.model import Hypervisor as Description
from provisioning.poll import DeadlineExceeded, NotYet, poll

LOG = logging.getLogger(__name__)
API_TIMEOUT_S = 60  # proxmoxer's default of 5 s is too short for a busy host
TASK_TIMEOUT_S = 600
STOP_TIMEOUT_S = 180  # systemd gives a unit 90 s to stop, and Pods are units of the node
LOCK_RETRY_S = 300  # parallel clones queue at the storage's lock (CAPMOX#389, bpg#995)
LOCKED = re.compile(r"can't lock file|got timeout|is locked|trying to acquire lock", re.IGNORECASE)


class HypervisorError(Exception):
    """The API could not be used, or a task failed; the message says where, why, and what to do."""


@dataclass(frozen=True)
class Vm:
    """One row of the hypervisor's list of virtual machines."""

    vmid: int
    name: str
    status: str
    tags: frozenset[str]
    template: bool


class Hypervisor:
    """A connection to one node of a Proxmox VE."""

    def __init__(self, description: Description) -> None:
        self.description = description
        url = urlsplit(str(description.api_url))
        user, _, token_name = description.token_id.partition("!")
        self._api = ProxmoxAPI(
            url.hostname,
            port=url.port or 8006,
            user=user,
            token_name=token_name,
            token_value=description.token.reveal(),
            verify_ssl=description.ca or True,
            timeout=API_TIMEOUT_S,
        )
        self._node = self._api.nodes(description.node)

    def call(self, method: str, path: str, **parameters: Any) -> Any:
        """One API call below the node, `path` as in the API viewer; raises HypervisorError."""
        return self._call(self._node, method, path, parameters)

    def _call(self, base: Any, method: str, path: str, parameters: dict[str, Any]) -> Any:
        where = self.description.api_url
        if method != "get":
            LOG.info("%s %s", method.upper(), path)
        try:
            return getattr(base(path), method)(**parameters)
        except requests.exceptions.SSLError as error:
            raise HypervisorError(
                f"{where} shows a certificate that {self.description.ca or 'the system store'} does not vouch for; "
                "set hypervisor.ca to the authority that signed it (on Proxmox VE: /etc/pve/pve-root-ca.pem)"
            ) from error
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise HypervisorError(
                f"{where} does not answer ({type(error).__name__}); check hypervisor.api_url, and that it is up"
            ) from error
        except AuthenticationError as error:
            raise HypervisorError(f"{where} refuses {self.description.token_id}: {error}") from error
        except ResourceException as error:
            if error.status_code == 401:
                raise HypervisorError(
                    f"{where} refuses the token {self.description.token_id} (401); check hypervisor.token_id, and the "
                    f"secret that {self.description.token} holds"
                ) from error
            reason = f"{error.status_message}: {error.content}".strip().replace("\n", " ")
            errors = f" {error.errors}" if error.errors else ""
            raise HypervisorError(
                f"{method.upper()} {path} on {where}: {error.status_code} {reason}{errors}"
            ) from error

    def task(self, method: str, path: str, timeout_s: float = TASK_TIMEOUT_S, **parameters: Any) -> None:
        """A call that answers a UPID, awaited to its end; a lock held by another task is waited for.

        Raises HypervisorError with the task's own words when it fails or outlasts `timeout_s`.
        """

        def attempt() -> bool:
            try:
                self.wait(self.call(method, path, **parameters), timeout_s)
            except HypervisorError as error:
                if LOCKED.search(str(error)):
                    raise NotYet(str(error)) from error
                raise
            return True

        try:
            poll(f"{method.upper()} {path}", attempt, timeout_s=LOCK_RETRY_S, interval_s=2)
        except DeadlineExceeded as error:
            raise HypervisorError(str(error)) from error

    def wait(self, upid: str, timeout_s: float = TASK_TIMEOUT_S) -> None:
        """Wait for the task `upid`; raises HypervisorError with the end of its log when it did not end OK."""
        node = self._api.nodes(upid.split(":")[1])

        def ended() -> dict[str, Any]:
            status: dict[str, Any] = self._call(node, "get", f"tasks/{upid}/status", {})
            if status["status"] != "stopped":
                raise NotYet(str(status["status"]))
            return status

        try:
            status = poll(f"task {upid}", ended, timeout_s=timeout_s, interval_s=0.2)
        except DeadlineExceeded as error:
            raise HypervisorError(str(error)) from error
        if status.get("exitstatus") != "OK":
            log = self._call(node, "get", f"tasks/{upid}/log", {})
            lines = "; ".join(str(line.get("t", "")) for line in log[-5:])
            raise HypervisorError(f"task {upid} failed: {status.get('exitstatus')} ({lines})")

    def version(self) -> str:
        """The release of the hypervisor, as `9.1.3`."""
        return str(self._call(self._api, "get", "version", {})["version"])

    def vms(self) -> dict[int, Vm]:
        """Every virtual machine of the whole Proxmox cluster, by id."""
        rows = self._call(self._api, "get", "cluster/resources", {"type": "vm"})
        return {
            int(row["vmid"]): Vm(
                int(row["vmid"]),
                str(row.get("name", "")),
                str(row["status"]),
                frozenset(re.split(r"[;, ]+", str(row.get("tags", "")))) - {""},
                bool(row.get("template", 0)),
            )
            for row in rows
        }

    def config(self, vmid: int) -> dict[str, Any]:
        """The configuration of `vmid` as the API gives it."""
        return dict(self.call("get", f"qemu/{vmid}/config"))

    def power(self, vmid: int) -> str:
        """`running`, `stopped` or `paused`."""
        status = self.call("get", f"qemu/{vmid}/status/current")
        return str(status.get("qmpstatus", status["status"]))

    def start(self, vmid: int) -> None:
        """Start `vmid` and await the task."""
        self.task("post", f"qemu/{vmid}/status/start")

    def stop(self, vmid: int) -> None:
        """Cut the power of `vmid` and await the task."""
        self.task("post", f"qemu/{vmid}/status/stop")

    def suspend(self, vmid: int) -> None:
        """Freeze `vmid` as a hang would, and await the task."""
        self.task("post", f"qemu/{vmid}/status/suspend")

    def resume(self, vmid: int) -> None:
        """Let `vmid` go on where it was frozen, and await the task."""
        self.task("post", f"qemu/{vmid}/status/resume")

    def shutdown(self, vmid: int, timeout_s: int = STOP_TIMEOUT_S) -> None:
        """Ask `vmid` to power off and await the task."""
        self.task("post", f"qemu/{vmid}/status/shutdown", timeout=timeout_s)

    def reboot(self, vmid: int, timeout_s: int = STOP_TIMEOUT_S) -> None:
        """Ask `vmid` to reboot and await the task."""
        self.task("post", f"qemu/{vmid}/status/reboot", timeout=timeout_s)


def owned(environment: Environment, vms: dict[int, Vm]) -> dict[int, Vm]:
    """Those of `vms` that carry the environment's tag."""
    return {vmid: vm for vmid, vm in vms.items() if environment.tag in vm.tags}
