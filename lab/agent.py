"""The guest agent: what QEMU's agent answers, got from the guest through the driver."""

import itertools
import shlex
import threading
from collections import OrderedDict

from lab import vmconfig
from lab.driver import Driver, DriverError, ExecResult, Interface
from lab.inventory import Inventory
from lab.refusal import Refusal

KEPT = 256
ABSENT = "QEMU guest agent is not running"


class Agent:
    """Runs commands inside guests. Every call raises PVE's refusal when the guest has no working agent."""

    def __init__(self, driver: Driver, inventory: Inventory) -> None:
        self._driver = driver
        self._inventory = inventory
        self._guard = threading.Lock()
        self._pids = itertools.count(1000)
        self._runs: OrderedDict[tuple[int, int], ExecResult | DriverError | None] = OrderedDict()

    def check(self, vmid: int) -> None:
        """Raise unless the agent is switched on and the guest runs."""
        machine = self._inventory.get(vmid)
        if not vmconfig.agent_enabled(machine.config):
            raise Refusal(500, "No QEMU guest agent configured")
        state = self._driver.status(vmid).state
        if state == "stopped":
            raise Refusal(500, f"VM {vmid} is not running")
        if state == "paused":
            raise Refusal(500, ABSENT)

    def ping(self, vmid: int) -> None:
        """Raise unless a command can be run in the guest."""
        self._run(vmid, ["true"])

    def start(self, vmid: int, argv: list[str], stdin: bytes) -> int:
        """Start a command; returns the number by which `result` finds it."""
        self.check(vmid)
        key = vmid, next(self._pids)
        with self._guard:
            self._runs[key] = None
            ended = [old for old, result in self._runs.items() if result is not None]
            for old in ended[: max(0, len(self._runs) - KEPT)]:
                del self._runs[old]
        threading.Thread(target=self._execute, args=(key, argv, stdin), name=f"agent {key}", daemon=True).start()
        return key[1]

    def result(self, vmid: int, pid: int) -> ExecResult | None:
        """How a started command ended; None while it runs."""
        self.check(vmid)
        with self._guard:
            if (vmid, pid) not in self._runs:
                raise Refusal(500, f"Agent error: PID {pid} does not exist")
            result = self._runs[vmid, pid]
        if isinstance(result, DriverError):
            raise Refusal(500, f"Agent error: {result}")
        return result

    def interfaces(self, vmid: int) -> tuple[Interface, ...]:
        """The guest's own view of its network."""
        self.check(vmid)
        try:
            return self._driver.interfaces(vmid)
        except DriverError as error:
            raise Refusal(500, ABSENT) from error

    def host_name(self, vmid: int) -> str:
        """The guest's host name."""
        return self._run(vmid, ["hostname"]).strip()

    def os_release(self, vmid: int) -> dict[str, str]:
        """The guest's /etc/os-release."""
        words = shlex.split(self._run(vmid, ["cat", "/etc/os-release"]), comments=True)
        return {key: value for key, equals, value in (word.partition("=") for word in words) if equals}

    def kernel(self, vmid: int) -> dict[str, str]:
        """The guest's kernel: machine, release and version."""
        lines = self._run(vmid, ["sh", "-c", "uname -m; uname -r; uname -v"]).splitlines()
        return dict(zip(("machine", "release", "version"), lines, strict=True))

    def _run(self, vmid: int, argv: list[str]) -> str:
        self.check(vmid)
        try:
            result = self._driver.execute(vmid, argv)
        except DriverError as error:
            raise Refusal(500, ABSENT) from error
        if result.exit_code:
            raise Refusal(500, f"Agent error: {shlex.join(argv)} exited {result.exit_code}")
        return result.stdout.decode(errors="replace")

    def _execute(self, key: tuple[int, int], argv: list[str], stdin: bytes) -> None:
        result: ExecResult | DriverError
        try:
            result = self._driver.execute(key[0], argv, stdin)
        except DriverError as error:
            result = error
        with self._guard:
            self._runs[key] = result
