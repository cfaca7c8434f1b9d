"""Locust's processes: `python -m load.generator master|worker`. Nothing imports this: Locust patches the world.

The master reads the plan from its standard input and deals it out; each worker sends its share of the visitors at their
times. What workers count they send every second, and the master keeps it.
"""

import argparse
import random
import resource
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent.pool import Pool
from gevent.resolver.thread import Resolver
from locust import FastHttpUser, task
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from load.arrivals import duration_s, share, times
from load.plan import Plan
from load.record import FILE, LATE_S, End, Header, Tally, write
from load.visit import OK, Act, Desk, Failed, Reply, Session, acts

READY_TIMEOUT_S = 60
HEAD_START_S = 1.0  # from dealing out the plan to the first visitor
GRACE_S = 5.0  # for the last answers, beyond their own time
SPARE_FILES = 100
INTERRUPTED, FAILED = 130, 1


class Fixed(Resolver):  # type: ignore[misc]
    """Finds some names where it is told, as curl's --resolve."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        super().__init__()
        self._addresses = addresses

    def getaddrinfo(self, host: Any, *rest: Any, **more: Any) -> Any:
        """Of the address, where there is one for the name."""
        name = host.decode() if isinstance(host, bytes) else host
        return super().getaddrinfo(self._addresses.get(name, name), *rest, **more)


class Tab:
    """One visitor's browser; every request is counted from the moment it was meant to begin."""

    def __init__(self, client: FastHttpSession, plan: Plan, tally: Tally, began_s: float, intended_s: float) -> None:
        self._client = client
        self._plan = plan
        self._tally = tally
        self._began_s = began_s
        self._intended_s: float | None = intended_s
        self._dice = random.Random(intended_s)

    def send(
        self,
        name: str,
        method: str,
        path: str,
        *,
        body: bytes | str = "",
        headers: Mapping[str, str] | None = None,
        wanted: tuple[int, ...] = (OK,),
    ) -> Reply:
        """The first request of a visit was meant for the visitor's time, each later one for now; raises Failed."""
        intended_s = time.monotonic() - self._began_s if self._intended_s is None else self._intended_s
        self._intended_s = None
        target = path or str(self._plan.url)
        answer: Any = self._client.request(
            method, target, name, body, headers=dict(headers or {}), allow_redirects=False
        )
        text = (answer.content or b"").decode(errors="replace")
        error = "" if answer.status_code in wanted else _kind(answer)
        self._tally.answered(name, intended_s, time.monotonic() - self._began_s, error)
        if error:
            raise Failed(error)
        return Reply(answer.status_code, text, answer.headers.get("location", ""))

    def cookies(self) -> dict[str, str]:
        """What the site has set."""
        return {cookie.name: cookie.value or "" for cookie in self._client.cookiejar}

    def think(self) -> None:
        """Exponentially distributed, as the pauses of many people are."""
        if self._plan.think_s:
            gevent.sleep(self._dice.expovariate(1 / self._plan.think_s))


def _kind(answer: Any) -> str:
    """What is counted: the status, or what kept an answer from coming."""
    if answer.status_code:
        return f"HTTP {answer.status_code}"
    return type(getattr(answer, "error", None)).__name__


class Clients:
    """Browsers to send requests by: new ones with connections of their own, or kept ones."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._kept: list[FastHttpSession] = []
        parts = urlsplit(str(plan.url))
        self._base = f"{parts.scheme}://{parts.netloc}"
        trusted = ssl.create_default_context(cadata=plan.ca or None)
        self._trusted: Callable[[], ssl.SSLContext] = lambda: trusted

    def take(self) -> FastHttpSession:
        """One that nobody uses."""
        if self._kept:
            return self._kept.pop()
        return FastHttpSession(
            base_url=self._base,
            request_event=EventHook(),
            user=None,
            insecure=False,
            ssl_context_factory=self._trusted,
            connection_timeout=self._plan.timeout_s,
            network_timeout=self._plan.timeout_s,
            concurrency=1,
            max_retries=0,
        )

    def give_back(self, client: FastHttpSession) -> None:
        """Without its cookies; its connection stays or ends, as the plan says."""
        client.cookiejar.clear()
        if self._plan.keep_connections:
            self._kept.append(client)
        else:
            client.client.close()


class Worker:
    """Sends one worker's share of a plan."""

    def __init__(self, plan: Plan, index: int, start_at: float) -> None:
        self.tally = Tally()
        self._plan = plan
        self._index = index
        # From the wall's clock, which workers on several machines share, to one that nobody sets.
        self._began_s = time.monotonic() + (start_at - time.time())
        self._pool = Pool(plan.in_flight_max)
        self._clients = Clients(plan)
        desk = Desk(Session(plan.editor), plan.mark) if plan.editor else None
        known = acts(desk)
        self._acts = [known[visit] for visit in plan.weights]
        self._weights = list(plan.weights.values())

    def send_all(self) -> None:
        """Returns when the last visitor has gone, or did not go in time."""
        for intended_s, act in self._visits():
            wait_s = intended_s - (time.monotonic() - self._began_s)
            gevent.sleep(max(0.0, wait_s))
            if self._pool.full():
                self.tally.undelivered(intended_s)
                continue
            if time.monotonic() - self._began_s - intended_s > LATE_S:
                self.tally.late(intended_s)
            self._pool.spawn(self._visit, act, intended_s)
        self._pool.join(self._plan.timeout_s + GRACE_S)

    def _visits(self) -> Iterator[tuple[float, Act]]:
        plan = self._plan
        dice = random.Random(f"{plan.poisson_seed} {self._index}")
        for intended_s in share(times(plan.segments, plan.poisson_seed), self._index, plan.workers):
            yield intended_s, dice.choices(self._acts, self._weights)[0]

    def _visit(self, act: Act, intended_s: float) -> None:
        client = self._clients.take()
        try:
            act(Tab(client, self._plan, self.tally, self._began_s, intended_s), random.Random(intended_s))
        except Failed:
            pass  # it is counted, and the visitor goes
        finally:
            self._clients.give_back(client)


class Visitors(FastHttpUser):  # type: ignore[misc]
    """One in each worker: Locust starts it and stops it, and it sends that worker's share."""

    host = "http://plan.invalid"  # the plan says where to
    worker: Worker | None = None

    @task  # type: ignore[untyped-decorator]
    def visit(self) -> None:
        """All of it, then no more: raises StopUser, as Locust wants it."""
        assert self.worker is not None
        self.worker.send_all()
        runner: WorkerRunner = self.environment.runner
        runner.send_message("tally", self.worker.tally.drained())
        runner.send_message("done")
        raise StopUser


def work(host: str, port: int) -> int:
    """A worker's process: until the master says that it is over."""
    environment = Environment(user_classes=[Visitors])
    runner = environment.create_worker_runner(host, port)

    def dealt(environment: Environment, msg: Any, **_: Any) -> None:
        plan = Plan.model_validate_json(msg.data["plan"])
        if plan.resolve:
            gevent.get_hub().resolver = Fixed(plan.resolve)
        Visitors.worker = Worker(plan, msg.data["index"], msg.data["start_at"])

    def counted() -> None:
        while True:
            gevent.sleep(1)
            if Visitors.worker is not None:
                runner.send_message("tally", Visitors.worker.tally.drained())

    runner.register_message("plan", dealt)
    gevent.spawn(counted)
    runner.greenlet.join()
    return 0


class Master:
    """Deals the plan out, gathers what is counted, and writes it down whatever happens."""

    def __init__(self, plan: Plan, header: Header, file: Path, bind: str, port: int) -> None:
        self._plan = plan
        self._header = header
        self._file = file
        self._runner: MasterRunner = Environment(user_classes=[Visitors]).create_master_runner(bind, port)
        self._tally = Tally()
        self._done = 0
        self._stopped = ""
        self._runner.register_message("tally", lambda msg, **_: self._tally.add(msg.data))
        self._runner.register_message("done", self._one_done)

    def _one_done(self, **_: Any) -> None:
        self._done += 1

    def stop(self, why: str) -> None:
        """End early."""
        self._stopped = self._stopped or why

    def run(self) -> int:
        """Returns the exit code."""
        try:
            self._stopped = self._stopped or self._ready()
            if not self._stopped:
                self._deal()
                self._watch()
        finally:
            self._runner.quit()
            with self._file.open("x", encoding="utf-8") as file:
                for line in (self._header, *self._tally.lines(), End(incomplete=self._stopped)):
                    write(file, line)
        return FAILED if self._stopped else 0

    def _ready(self) -> str:
        """Wait for every worker; what is missing at the deadline."""
        until = time.monotonic() + READY_TIMEOUT_S
        while len(self._runner.clients.ready) < self._plan.workers and not self._stopped:
            if time.monotonic() > until:
                return (
                    f"{len(self._runner.clients.ready)} of {self._plan.workers} workers came within {READY_TIMEOUT_S} s"
                )
            gevent.sleep(0.1)
        return self._stopped

    def _deal(self) -> None:
        start_at = time.time() + HEAD_START_S
        plan = self._plan.model_dump_json()
        for index, client in enumerate(sorted(self._runner.clients)):
            self._runner.send_message("plan", {"plan": plan, "index": index, "start_at": start_at}, client)
        self._runner.start(self._plan.workers, spawn_rate=self._plan.workers)

    def _watch(self) -> None:
        lasting_s = HEAD_START_S + duration_s(self._plan.segments)
        deadline_s = lasting_s + self._plan.timeout_s + GRACE_S + 10
        began_s = told_s = time.monotonic()
        while self._done < self._plan.workers and not self._stopped:
            gevent.sleep(0.1)
            passed_s = time.monotonic() - began_s
            if len(self._runner.clients.missing):
                self._stopped = "a worker is gone"
            elif passed_s > deadline_s:
                self._stopped = "the workers did not end in time"
            elif time.monotonic() - told_s >= 1:
                told_s = time.monotonic()
                self._tell(min(passed_s, lasting_s), lasting_s)

    def _tell(self, passed_s: float, lasting_s: float) -> None:
        overall = self._tally.overall
        count = overall.get_total_count()
        p95_ms = overall.get_value_at_percentile(95) / 1000 if count else 0
        figures = f"{count} requests   p95 {p95_ms:.0f} ms   {self._tally.failed} failed"
        sys.stderr.write(f"{passed_s:5.0f} of {lasting_s:.0f} s   {figures}\n")
        sys.stderr.flush()


def enough_files(wanted: int) -> str:
    """Take as many open files as there may be; what to do where those are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return (
            f"{wanted} open files may be needed at once and {hard} are allowed; raise `ulimit -Hn`, or use more workers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """One process."""
    parser = argparse.ArgumentParser(prog="python -m load.generator", description=__doc__)
    parser.add_argument("part", choices=("master", "worker"))
    parser.add_argument("--host", default="127.0.0.1", help="where the master listens")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--out", type=Path, help="folder of the record (master)")
    told = parser.parse_args(arguments)
    if told.part == "worker":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the master's: it ends the workers
        return work(told.host, told.port)
    header, plan = sys.stdin.read().split("\n", 1)
    wanted = Plan.model_validate_json(plan)
    if trouble := enough_files(wanted.in_flight_max + SPARE_FILES):
        sys.stderr.write(f"{trouble}\n")
        return FAILED
    master = Master(wanted, Header.model_validate_json(header), told.out / FILE, told.host, told.port)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, master.stop, "stopped by hand")
    return master.run()


if __name__ == "__main__":
    sys.exit(main())
