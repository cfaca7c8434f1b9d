"""What `make bench` measures from inside the target's network: `python -m tests.measures NAME` prints one figure.

A process of its own for each, as a runner that has entered the lab's network does not leave it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from chaos import probe
from chaos.facts import Live
from chaos.layers import PATH, questions
from chaos.lifeline import helper
from provisioning.machines import (
    Machines,
    MachinesCloned,
    MachinesEntered,
    MachinesRunning,
    MachinesShaped,
    TemplateMade,
    in_parallel,
)
from provisioning.poll import NotYet, poll
from provisioning.session import Session, open_session
from tests.processes import children
from tests.ruler import quiet

WARM_UP, VISITS = 30, 200
VISITORS, BUSY_S = 4, 30.0
LAYERS, INTERVAL_S, ASKED_MIN = 10, 0.05, 0.99
RETURN_TIMEOUT_S = 300.0


def clone_and_enter_s(session: Session) -> float:
    """Clone, boot and SSH of one machine."""
    one = session.environment.cluster_machines[-1:]
    context = Machines(session.environment, one, session.hypervisor, session.shell)
    if TemplateMade(context).pending():
        TemplateMade(context).apply()
    started_s = time.monotonic()
    for action in (
        MachinesCloned(context),
        MachinesShaped(context),
        MachinesRunning(context),
        MachinesEntered(context),
    ):
        if action.pending():
            action.apply()
    return time.monotonic() - started_s


def front_page_ms(session: Session) -> float:
    """The median of front pages at the VIP, warm, one after another over one connection."""
    url = f"http://{session.environment.wordpress.vip}/"
    took_s = []
    with requests.Session() as visitor:
        for _ in range(WARM_UP + VISITS):
            started_s = time.monotonic()
            visitor.get(url, timeout=30).raise_for_status()
            took_s.append(time.monotonic() - started_s)
    return 1000 * statistics.median(took_s[WARM_UP:])


def front_pages_per_s(session: Session) -> float:
    """Front pages a second at the VIP, by visitors who ask for the next as soon as they have one (closed model)."""
    url = f"http://{session.environment.wordpress.vip}/"
    until_s = time.monotonic() + BUSY_S

    def visits(_: int) -> int:
        count = 0
        with requests.Session() as visitor:
            while time.monotonic() < until_s:
                visitor.get(url, timeout=30).raise_for_status()
                count += 1
        return count

    with ThreadPoolExecutor(VISITORS) as pool:
        return sum(pool.map(visits, range(VISITORS))) / BUSY_S


def cold_start_s(session: Session) -> float:
    """From the power of everything, cut at once, to the site's first answer."""
    hypervisor, machines = session.hypervisor, session.environment.machines
    in_parallel(machines, lambda machine: hypervisor.stop(machine.vmid))
    started_s = time.monotonic()
    in_parallel(machines, lambda machine: hypervisor.start(machine.vmid))

    def answers() -> bool:
        try:
            reply = requests.get(f"http://{session.environment.wordpress.vip}/", timeout=5)
        except requests.RequestException as error:
            raise NotYet(type(error).__name__) from error
        if reply.status_code != requests.codes.ok:
            raise NotYet(str(reply.status_code))
        return True

    poll("the site", answers, timeout_s=RETURN_TIMEOUT_S, interval_s=0.5)
    return time.monotonic() - started_s


def nodes_memory_gib(session: Session) -> float:
    """What the Kubernetes nodes have in use together, page cache left out (free(1): total less available)."""
    used_kib = "awk '/^MemTotal:/ {total = $2} /^MemAvailable:/ {print total - $2}' /proc/meminfo"
    machines = session.environment.cluster_machines
    return sum(int(session.shell.check(machine, used_kib)) for machine in machines) / 2**20


def prober_percent(session: Session, *, with_clients: bool = False) -> float:
    """Of one core, what the probing process takes at 20 questions a second to each of ten layers of the target.

    The layers are those of a drill, one of each kind: two of SQL or of the replicas would be the same question again.
    """
    live = Live(session, session.cluster)
    asked = questions(live, live.facts(), ()).questions
    one_each = {question.layer.partition("/srv")[0]: question for question in asked if "page/" not in question.layer}
    return _prober_percent([question for layer, question in one_each.items() if layer != "nfs"], with_clients)


def prober_and_clients_percent(session: Session) -> float:
    """As `prober_percent`, with the SSH clients by which it asks on machines."""
    return prober_percent(session, with_clients=True)


def prober_pages_percent(session: Session) -> float:
    """As `prober_percent`, of ten times a page at the VIP, each over a new connection."""
    return _prober_percent(_pages(str(session.environment.wordpress.vip), 80))


def prober_own_percent() -> float:
    """As `prober_pages_percent`, answered at once on loopback: without the packets' way through the lab's network."""
    with quiet() as port:
        return _prober_percent(_pages("127.0.0.1", port))


def _pages(host: str, port: int) -> list[probe.Page]:
    return [probe.Page(layer=f"page{n}", host=host, port=port, path=PATH) for n in range(LAYERS)]


def _prober_percent(asked: Sequence[probe.AnyQuestion], with_clients: bool = False) -> float:
    layers = tuple(question.model_copy(update={"interval_s": INTERVAL_S}) for question in asked)
    if len(layers) != LAYERS:
        raise ValueError(f"expected {LAYERS} layers, found {', '.join(question.layer for question in layers)}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probes.jsonl"
        with helper("chaos.probe", file) as at_work:
            at_work.begin(probe.Plan(questions=layers))
            process = at_work.process
            poll("answers", lambda: file.exists() and file.stat().st_size > 0, timeout_s=30, interval_s=0.1)
            counted = [process.pid, *(children(process.pid) if with_clients else ())]
            before_s, began_s = sum(map(_cpu_s, counted)), time.monotonic()
            asked_before = file.read_bytes().count(b"\n")
            threading.Event().wait(BUSY_S)
            took_s, busy_s = time.monotonic() - began_s, sum(map(_cpu_s, counted)) - before_s
            share = (file.read_bytes().count(b"\n") - asked_before) * INTERVAL_S / (took_s * LAYERS)
            if share < ASKED_MIN:
                raise ValueError(f"the prober asked {share:.0%} of its questions: what it takes for all is not known")
            return 100 * busy_s / took_s


def _cpu_s(pid: int) -> float:
    """Processor time of a process and its threads (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


MEASURES: dict[str, Callable[[Session], float]] = {
    measure.__name__: measure
    for measure in (
        clone_and_enter_s,
        front_page_ms,
        front_pages_per_s,
        cold_start_s,
        nodes_memory_gib,
        prober_percent,
        prober_and_clients_percent,
        prober_pages_percent,
    )
}


def main() -> None:
    """Measure one, against the lab."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MEASURES)
    sys.stdout.write(f"{MEASURES[parser.parse_args().name](open_session('lab'))}\n")


if __name__ == "__main__":
    main()
