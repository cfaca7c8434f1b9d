"""How busy the machines are while load runs: facts, read on each over one SSH connection that lasts."""

import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from environments.model import Environment, Machine, Role
from load.record import Sample
from provisioning.session import Session

INTERVAL_S = 2
# What there is to count on a machine, beside its processors: processes by their name.
PROCESSES = {Role.WORKER: "apache2", Role.NDB_SQL: "mysqld", Role.NDB_DATA: "ndbmtd", Role.NFS: "ganesha.nfsd"}
# Microseconds of processor time (of the machine, be it a container or not), processors, and such processes at work.
SCRIPT = (
    "while sleep {interval}; do "
    "echo $(sed -n 's/^usage_usec //p' /sys/fs/cgroup/cpu.stat) $(nproc) "
    "$(ps -C {process} -o state= | grep -c '[RD]'); done"
)
SATURATED = 0.85  # of all processors: what comes on top waits


@dataclass
class Sampler:
    """Gathers samples of every machine that serves the site."""

    began_s: float
    samples: list[Sample] = field(default_factory=list)

    def listen(self, machine: Machine, process: "subprocess.Popen[str]") -> None:
        """Until the connection ends."""
        assert process.stdout is not None
        before: tuple[float, int] | None = None
        for line in process.stdout:
            now_s, words = time.monotonic(), line.split()
            if len(words) == 3 and all(word.isdigit() for word in words):
                used_us, processors, busy = map(int, words)
                if before is not None:
                    cpu = (used_us - before[1]) / 1e6 / (now_s - before[0]) / processors
                    sample = Sample(at_s=now_s - self.began_s, machine=machine.name, cpu=cpu, busy={"busy": busy})
                    self.samples.append(sample)
                before = now_s, used_us


@contextmanager
def sampling(session: Session) -> Iterator[Sampler]:
    """Sample while the block runs; a machine that cannot be entered has no samples."""
    sampler = Sampler(time.monotonic())
    connections, listeners = [], []
    for machine in session.environment.machines:
        script = SCRIPT.format(interval=INTERVAL_S, process=PROCESSES.get(machine.role, "none"))
        address = str(session.environment.address(machine))
        command = ["ssh", *session.shell.options(), address, f"sh -c {shlex.quote(script)}"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        connections.append(process)
        listeners.append(threading.Thread(target=sampler.listen, args=(machine, process), daemon=True))
        listeners[-1].start()
    try:
        yield sampler
    finally:
        for process in connections:
            process.kill()
            process.wait()
        for listener in listeners:
            listener.join()


def busiest(samples: Sequence[Sample]) -> list[tuple[str, float]]:
    """Machines with the mean share of their processors in use, busiest first. Pure."""
    shares: dict[str, list[float]] = {}
    for sample in samples:
        shares.setdefault(sample.machine, []).append(sample.cpu)
    means = {machine: sum(found) / len(found) for machine, found in shares.items()}
    return sorted(means.items(), key=lambda pair: -pair[1])


def saturated(samples: Sequence[Sample], environment: Environment) -> str:
    """What gave out, in words; that nothing did, where no machine's processors were. Pure."""
    found = busiest(samples)
    if not found:
        return "no machine could be sampled"
    together = sum(share for _, share in found)
    full = [f"{name} ({environment.machine(name).role}): {share:.0%}" for name, share in found if share >= SATURATED]
    if full:
        return f"processors of {', '.join(full)}"
    name, share = found[0]
    shared = f"; all machines together use {together:.0%} of one's processors" if together >= SATURATED else ""
    return f"no machine's own processors: the busiest is {name} with {share:.0%}{shared}"
