"""How busy the machines are while load runs: facts, read on each over one SSH connection that lasts."""

import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from environments.model import Machine, Role
from load.record import Sample
from provisioning.session import Session

INTERVAL_S = 2
# What there is to count on a machine, beside its processors: processes by their name.
PROGRAMS = {Role.WORKER: "apache2", Role.NDB_SQL: "mysqld", Role.NDB_DATA: "ndbmtd", Role.NFS: "ganesha.nfsd,nfsd"}
SERVES = {Role.WORKER: "PHP", Role.NDB_SQL: "SQL", Role.NDB_DATA: "data", Role.NFS: "NFS"}
# Microseconds of processor time (of the machine, be it a container or not), processors, and such threads at work: on a
# processor, or waiting for one or for a disk (ps(1), states R and D).
SCRIPT = (
    "while sleep {interval}; do "
    "echo $(sed -n 's/^usage_usec //p' /sys/fs/cgroup/cpu.stat) $(nproc) "
    "$(ps -L -C {programs} -o state= | grep -c '[RD]'); done"
)


@dataclass
class Sampler:
    """Gathers samples of every machine, their times by the monotonic clock."""

    samples: list[Sample] = field(default_factory=list)

    def since(self, second_0_s: float) -> list[Sample]:
        """Samples from that moment of the monotonic clock on, their times counted from there."""
        return [
            sample.model_copy(update={"at_s": sample.at_s - second_0_s})
            for sample in self.samples
            if sample.at_s >= second_0_s
        ]

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
                    serves = SERVES.get(machine.role)
                    at_work = {serves: float(busy)} if serves else {}
                    self.samples.append(Sample(at_s=now_s, machine=machine.name, cpu=cpu, busy=at_work))
                before = now_s, used_us


@contextmanager
def sampling(session: Session) -> Iterator[Sampler]:
    """Sample while the block runs; a machine that cannot be entered has no samples."""
    sampler = Sampler()
    connections, listeners = [], []
    for machine in session.environment.machines:
        script = SCRIPT.format(interval=INTERVAL_S, programs=PROGRAMS.get(machine.role, "none"))
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
