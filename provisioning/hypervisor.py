"""The Proxmox VE API as provisioning, steps and chaos use it: facts read, operations that await their task."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException
from urllib3.exceptions import NewConnectionError

from environments.model import Environment
from environments.model import Hypervisor as Description
from provisioning.poll import DeadlineExceeded, NotYet, poll

LOG = logging.getLogger(__name__)
TASK_TIMEOUT_S = 600
STOP_TIMEOUT_S = 180  # systemd gives a unit 90 s to stop, and Pods are units of the node
# A lock that is held, and nothing else that ran out of time: "VM quit/powerdown failed - got timeout" is an answer.
# A task that got its lock after all wrote OK behind.
LOCKED = re.compile(
    r"can't lock file|is locked|got lock request timeout|trying to acquire (cfs )?lock(?!.*\bOK\b)", re.IGNORECASE
)
# What a proxy says for an API that is away, and what Proxmox VE says for a node that is (595 to 597: AnyEvent::HTTP).
# Its own 500 is mostly a refusal, which asking again does not change.
NOT_REACHED = (503, 595)
CUT_OFF = (502, 504, 596, 597)
REPEATABLE = ("get", "put")  # done twice, they are done once
DONE = re.compile(r"OK|WARNINGS: \d+")  # a task's end (PVE::Tools::upid_status_is_error)
# What reading an answer of another shape ends with.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
Told = TypeVar("Told")


@dataclass(frozen=True)
class Patience:
    """How long an API is waited for, in seconds.

    `answer_s`: for an answer; proxmoxer's default of 5 is too short for a busy host. `recovery_s`: for one that is
    away or a lock that is held; parallel clones queue at the storage's (CAPMOX#389, bpg#995). `pause_s`: in between.
    """

    answer_s: float = 60
    recovery_s: float = 300
    pause_s: float = 2


class HypervisorError(Exception):
    """The API could not be used, or a task failed; the message says where, why, and what to do."""


class _Passing(Exception):
    """What may be over soon; `undone` says that nothing can have come of the call."""

    def __init__(self, cause: str, *, undone: bool) -> None:
        self.undone = undone
        super().__init__(cause)


@dataclass(frozen=True)
class Vm:
    """One row of the hypervisor's list of virtual machines; `status` is `running`, `stopped` or `paused`.

    `here` says that it is on the environment's own node; a container, which that list has as well, never is.
    """

    vmid: int
    name: str
    status: str
    tags: frozenset[str]
    template: bool
    uptime_s: int = 0
    here: bool = False


class Hypervisor:
    """A connection to one node of a Proxmox VE. Every method raises HypervisorError.

    A call that could not be made, or whose answer is lost, is made again for a while, unless something may have come
    of it that must not come twice. It is authorised by a token, which unlike a ticket does not run out by itself.
    """

    def __init__(self, description: Description, patience: Patience | None = None) -> None:
        self.description = description
        self.patience = patience or Patience()
        url = urlsplit(str(description.api_url))
        user, _, token_name = description.token_id.partition("!")
        self._api = ProxmoxAPI(
            url.hostname,
            port=url.port or 8006,
            user=user,
            token_name=token_name,
            token_value=description.token.reveal(),
            verify_ssl=description.ca or True,
            timeout=self.patience.answer_s,
        )
        self._node = self._api.nodes(description.node)
        self._met = False  # one that never answered is not away: its address is wrong, or it is off

    def call(self, method: str, path: str, **parameters: Any) -> Any:
        """One API call below the node, `path` as in the API viewer."""
        return self._call(self._node, method, path, parameters)

    def _call(self, base: Any, method: str, path: str, parameters: dict[str, Any]) -> Any:
        what = f"{method.upper()} {path} on {self.description.api_url}"
        if method != "get":
            LOG.info("%s %s", method.upper(), path)
        told: set[str] = set()

        def attempt() -> tuple[Any]:
            try:
                return (self._once(base, method, path, parameters),)
            except _Passing as fault:
                if not (fault.undone or method in REPEATABLE):
                    raise HypervisorError(
                        f"{what}: {fault}; it may have been done all the same, so it is not repeated: run this again, "
                        "which goes on from what is there"
                    ) from fault
                if str(fault) not in told:
                    LOG.warning("%s: %s; asked again for %g s", what, fault, self.patience.recovery_s)
                told.add(str(fault))
                raise NotYet(str(fault)) from fault

        try:
            (answer,) = poll(what, attempt, timeout_s=self.patience.recovery_s, interval_s=self.patience.pause_s)
        except DeadlineExceeded as error:
            raise HypervisorError(
                f"{what}: {error.last_state}, for {self.patience.recovery_s:g} s; look at the host's load, "
                "at its tasks, and at the services pveproxy and pvedaemon"
            ) from error
        return answer

    def _once(self, base: Any, method: str, path: str, parameters: dict[str, Any]) -> Any:
        """Raises HypervisorError, and _Passing for what may be over soon."""
        where = self.description.api_url
        try:
            answer = getattr(base(path), method)(**parameters)
        except requests.exceptions.RequestException as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise HypervisorError(
                    f"{where} shows a certificate that {self.description.ca or 'the system store'} does not vouch for; "
                    "set hypervisor.ca to the authority that signed it (on Proxmox VE: /etc/pve/pve-root-ca.pem)"
                ) from error
            if "X509" in str(error):
                raise self._no_authority(error) from error
            told = f"does not answer ({type(error).__name__})"
            if not self._met and isinstance(error, requests.exceptions.ConnectionError):
                raise HypervisorError(f"{where} {told}; check hypervisor.api_url, and that it is up") from error
            raise _Passing(f"the API {told}", undone=_never_sent(error)) from error
        except OSError as error:
            raise self._no_authority(error) from error
        except AuthenticationError as error:
            raise HypervisorError(f"{where} refuses {self.description.token_id}: {error}") from error
        except ResourceException as error:
            self._met = True
            raise self._refused(error, method, path) from error
        except MALFORMED as error:
            raise self._foreign(f"{method.upper()} {path}") from error
        self._met = True
        # proxmoxer's word for a body that is no JSON
        if isinstance(answer, dict) and isinstance(answer.get("errors"), bytes):
            raise self._foreign(f"{method.upper()} {path}")
        return answer

    def _refused(self, error: ResourceException, method: str, path: str) -> Exception:
        where = self.description.api_url
        if error.status_code == 401:
            return HypervisorError(
                f"{where} refuses the token {self.description.token_id} (401); check hypervisor.token_id, and the "
                f"secret that {self.description.token} holds"
            )
        reason = f"{error.status_code} {error.status_message}: {error.content}".strip().replace("\n", " ")
        reason += f" {error.errors}" if error.errors else ""
        if error.status_code in (*NOT_REACHED, *CUT_OFF):
            return _Passing(reason, undone=error.status_code in NOT_REACHED)
        if LOCKED.search(reason):
            return _Passing(reason, undone=True)
        return HypervisorError(f"{method.upper()} {path} on {where}: {reason}")

    def _no_authority(self, error: OSError) -> HypervisorError:
        return HypervisorError(
            f"hypervisor.ca, {self.description.ca}, is no certificate that can be used ({error}); correct it in the "
            "environment's file"
        )

    def _foreign(self, call: str) -> HypervisorError:
        return HypervisorError(
            f"{self.description.api_url} answers {call} with something that is not Proxmox VE's; check "
            "hypervisor.api_url, and what stands between it and this machine"
        )

    def _read(self, call: str, answer: Any, parse: Callable[[Any], Told]) -> Told:
        try:
            return parse(answer)
        except MALFORMED as error:
            raise self._foreign(call) from error

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

        patience = self.patience
        try:
            poll(f"{method.upper()} {path}", attempt, timeout_s=patience.recovery_s, interval_s=patience.pause_s)
        except DeadlineExceeded as error:
            raise HypervisorError(str(error)) from error

    def wait(self, upid: str, timeout_s: float = TASK_TIMEOUT_S) -> None:
        """Wait for the task `upid`; raises HypervisorError with the end of its log when it did not end well."""
        found = re.match(r"UPID:([^:/]+):", str(upid))
        if not found:
            raise self._foreign("what began a task")
        node = self._api.nodes(found[1])

        def ended() -> str:
            status = self._call(node, "get", f"tasks/{upid}/status", {})
            state = self._read("the state of a task", status, lambda told: str(told["status"]))
            if state != "stopped":
                raise NotYet(state)
            return str(status.get("exitstatus"))

        try:
            status = poll(f"task {upid}", ended, timeout_s=timeout_s, interval_s=0.2)
        except DeadlineExceeded as error:
            raise HypervisorError(
                f"{error}; it goes on over there: look at it in the task list of {self.description.api_url}"
            ) from error
        if not DONE.fullmatch(status):
            log = self._call(node, "get", f"tasks/{upid}/log", {})
            lines = self._read(
                "a task's log", log, lambda told: "; ".join(str(line.get("t", "")) for line in told[-5:])
            )
            raise HypervisorError(f"task {upid} failed: {status} ({lines})")
        if status != "OK":
            LOG.warning("task %s ended with %s", upid, status)

    def version(self) -> str:
        """The release of the hypervisor, as `9.1.3`."""
        answer = self._call(self._api, "get", "version", {})
        return self._read("its version", answer, lambda told: str(told["version"]))

    def vms(self) -> dict[int, Vm]:
        """Every virtual machine of the whole Proxmox cluster, by id.

        That list calls a paused machine running; the node tells them apart, of its own (`full`: it asks each QEMU).
        """
        rows = self._call(self._api, "get", "cluster/resources", {"type": "vm"})
        vms = self._read("the list of machines", rows, lambda told: [_vm(row) for row in told])
        here = self.call("get", "qemu", full=1)
        states = self._read("the machines' states", here, lambda told: {int(row["vmid"]): _state(row) for row in told})
        return {vm.vmid: replace(vm, status=states[vm.vmid], here=True) if vm.vmid in states else vm for vm in vms}

    def config(self, vmid: int) -> dict[str, Any]:
        """The configuration of `vmid` as the API gives it."""
        answer = self.call("get", f"qemu/{vmid}/config")
        return self._read(f"the configuration of {vmid}", answer, lambda told: {**told})

    def power(self, vmid: int) -> str:
        """`running`, `stopped` or `paused`."""
        return self._read(f"the state of {vmid}", self.call("get", f"qemu/{vmid}/status/current"), _state)

    def settle(self, vmid: int) -> None:
        """Wait until nothing is under way for `vmid`, whoever asked for it: its power is what it stays then."""

        def settled() -> bool:
            rows = self.call("get", "tasks", vmid=vmid, source="active")
            running = self._read(
                "the list of tasks", rows, lambda told: [str(t["upid"]) for t in told if "endtime" not in t]
            )
            if running:
                raise NotYet(", ".join(running))
            return True

        try:
            poll(f"nothing under way for VM {vmid}", settled, timeout_s=TASK_TIMEOUT_S, interval_s=0.5)
        except DeadlineExceeded as error:
            raise HypervisorError(f"{error}; look at it in the task list of {self.description.api_url}") from error

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


def _state(told: dict[str, Any]) -> str:
    """What QEMU says of itself, where it was asked."""
    return str(told.get("qmpstatus", told["status"]))


def _vm(row: dict[str, Any]) -> Vm:
    """A row of `cluster/resources`."""
    return Vm(
        int(row["vmid"]),
        str(row.get("name", "")),
        str(row["status"]),
        frozenset(re.split(r"[;, ]+", str(row.get("tags", "")))) - {""},
        bool(row.get("template", 0)),
        int(row.get("uptime", 0)),
    )


def _never_sent(error: requests.exceptions.RequestException) -> bool:
    """Whether no connection came about, so that nothing can have come of the request."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    cause = error.args[0] if error.args else None
    return isinstance(getattr(cause, "reason", None), NewConnectionError)


def owned(environment: Environment, vms: dict[int, Vm]) -> dict[int, Vm]:
    """Those of `vms` that carry the environment's tag."""
    return {vmid: vm for vmid, vm in vms.items() if environment.tag in vm.tags}
