"""What the machine below the lab is and how busy: the figures of PVE's node."""

import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory."""

    total: int
    available: int
    free: int

    @property
    def used(self) -> int:
        """Bytes that something holds."""
        return self.total - self.available


@dataclass(frozen=True)
class Cpus:
    """The processors as the kernel counts them."""

    model: str
    count: int
    sockets: int
    mhz: str


class Meter:
    """Turns ever-growing CPU seconds into a share of one CPU: the mean since the reading before."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._readings: dict[str, tuple[float, float]] = {}

    def share(self, name: str, cpu_time_s: float) -> float:
        """The mean number of CPUs `name` kept busy since the last call for it; 0 at the first."""
        now = time.monotonic()
        with self._guard:
            then, before = self._readings.get(name, (now, cpu_time_s))
            self._readings[name] = (now, cpu_time_s)
        elapsed_s = now - then
        return max(0.0, cpu_time_s - before) / elapsed_s if elapsed_s > 0 else 0.0


def memory() -> Memory:
    """Read /proc/meminfo."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return Memory(kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024, kib["MemFree"] * 1024)


def cpus() -> Cpus:
    """Read /proc/cpuinfo."""
    pairs = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    values = [(key.strip(), value.strip()) for key, _, value in pairs]
    first = dict(reversed(values))
    sockets = {value for key, value in values if key == "physical id"}
    model = first.get("model name", platform.processor() or platform.machine())
    return Cpus(model, os.cpu_count() or 1, len(sockets) or 1, first.get("cpu MHz", "0"))


def busy_s() -> float:
    """CPU seconds that all processors together have worked since boot (/proc/stat)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def uptime_s() -> int:
    """Seconds since boot."""
    return int(float(Path("/proc/uptime").read_text().split()[0]))
