"""Locust's processes: `python -m load.generator master|worker`. Nothing imports this: Locust patches the world.

The master reads the plan from its standard input and deals it out; each worker sends its share of the visitors at their
times. What workers count they send every second, and the master keeps it. The end of its standard input ends each of
these processes, so that none outlives whoever started it.
"""

import argparse
import gc
import itertools
import os
import random
import resource
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from socket import AI_NUMERICHOST
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent import GreenletExit
from gevent.monkey import get_original
from gevent.os import tp_read
from gevent.resolver.thread import Resolver
from locust import FastHttpUser, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from chaos.priority import served_first
from load.alarm import Alarm
from load.arrivals import duration_s, share, times
from load.client import Client, Heads
from load.plan import Plan
from load.record import BEGUN, BY_HAND, FILE, LATE_S, VISIT, End, Header, Tally, own_fault, write
from load.visit import OK, Act, Desk, Failed, NotSent, Reply, Session, acts, path_of

unpatched_getaddrinfo = get_original("socket", "getaddrinfo")
HEAD_START_S = 1.0  # from dealing out the plan to the first visitor
GRACE_S = 5.0  # for the last answers, beyond their own time
SPARE_FILES = 100
BEHIND = 10  # the master's niceness: what it writes down can wait, the visitors of a worker beside it cannot
FAILED = 1
CUT_OFF = "no answer until the end of the run"
THINKING = "too many under way"  # in_flight_max, of whom most look at a page: too few workers
CROWDED = "no answer: too many wait"  # in_flight_max, of whom most wait: the site's own overload


class Names(Resolver):  # type: ignore[misc]
    """Finds some names where it is told, as curl's --resolve; an address is found at once, and not by a thread."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        super().__init__()
        self._addresses = addresses

    def getaddrinfo(self, host: Any, port: Any, family: int = 0, kind: int = 0, proto: int = 0, flags: int = 0) -> Any:
        """Of the address, where there is one for the name."""
        name = host.decode() if isinstance(host, bytes) else host
        address = self._addresses.get(name, name)
        with suppress(OSError):  # it is no address
            return unpatched_getaddrinfo(address, port, family, kind, proto, flags | AI_NUMERICHOST)
        return super().getaddrinfo(address, port, family, kind, proto, flags)


class Tab:
    """One visitor's browser; every request is counted from the moment it was meant to begin."""

    def __init__(self, client: Client, worker: "Worker", intended_s: float) -> None:
        self._client = client
        self._worker = worker
        self._seed = intended_s
        self._intended_s: float | None = intended_s

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
        worker = self._worker
        intended_s = worker.passed_s() if self._intended_s is None else self._intended_s
        self._intended_s = None
        worker.waiting += 1
        try:
            answer = self._client.request(method, path or worker.page, body, headers or {})
        except GreenletExit as end:
            raise self._failed(name, intended_s, CUT_OFF) from end
        except Exception as broken:
            if own := own_fault(broken):
                raise NotSent(own) from broken
            raise self._failed(name, intended_s, type(broken).__name__) from broken
        finally:
            worker.waiting -= 1
        if answer.status not in wanted:
            raise self._failed(name, intended_s, f"HTTP {answer.status}")
        worker.tally.answered(name, intended_s, worker.passed_s(answer.arrived_s))
        return Reply(answer.status, answer.content.decode(errors="replace"), answer.location)

    def _failed(self, name: str, intended_s: float, kind: str) -> Failed:
        self._worker.tally.answered(name, intended_s, self._worker.passed_s(), kind)
        return Failed(kind)

    @property
    def host(self) -> str:
        """The URL's."""
        return self._worker.asked.netloc

    @cached_property
    def dice(self) -> random.Random:
        """A visit's own, made for its first throw: whoever asks for one page needs none."""
        return random.Random(self._seed)

    def cookies(self) -> dict[str, str]:
        """What the site has set."""
        return self._client.cookies()

    def think(self) -> None:
        """Exponentially distributed, as the pauses of many people are."""
        if self._worker.plan.think_s:
            gevent.sleep(self.dice.expovariate(1 / self._worker.plan.think_s))


class Clients:
    """Browsers to send requests by: new ones with connections of their own, or kept ones."""

    def __init__(self, plan: Plan, site: str) -> None:
        self._plan = plan
        self._kept: list[Client] = []
        heads: Heads = {}
        self._new = partial(Client, site, plan.timeout_s, ssl.create_default_context(cadata=plan.ca or None), heads)

    @contextmanager
    def one(self) -> Iterator[Client]:
        """One that nobody else uses; it loses its cookies, and its connection stays or ends, as the plan says."""
        client = self._kept.pop() if self._kept else self._new()
        try:
            yield client
        finally:
            client.forget()
            if self._plan.keep_connections:
                self._kept.append(client)
            else:
                client.close()


class Worker:
    """Sends one worker's share of a plan."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.tally = Tally()
        self.plan = plan
        self.waiting = 0
        self._index = index
        self._began_s = 0.0
        self._under_way: set[gevent.greenlet] = set()
        self.asked = urlsplit(str(plan.url))
        self.page = path_of(self.asked)
        self._clients = Clients(plan, f"{self.asked.scheme}://{self.asked.netloc}")
        desk = Desk(Session(plan.editor), plan.mark) if plan.editor else None
        known = acts(desk)
        self._acts = [known[visit] for visit in plan.weights]
        self._weights = list(itertools.accumulate(plan.weights.values()))

    def begin_at(self, start_at: float) -> None:
        """Second 0, from the wall's clock, which workers on several machines share, to one that nobody sets."""
        self._began_s = time.monotonic() + (start_at - time.time())

    def passed_s(self, at_s: float | None = None) -> float:
        """Seconds since second 0, now or by `time.monotonic()`."""
        return (time.monotonic() if at_s is None else at_s) - self._began_s

    def send_all(self) -> None:
        """Returns when the last visitor has gone; whoever waits for an answer until then is cut off, and counted."""
        with closing(Alarm()) as alarm:
            for intended_s, act in self._visits():
                self.tally.meant(intended_s)
                alarm.wait_until(self._began_s + intended_s)
                if len(self._under_way) >= self.plan.in_flight_max:
                    self._turned_away(intended_s)
                    continue
                if self.passed_s() - intended_s > LATE_S:
                    self.tally.late(intended_s)
                # Raw: a greenlet that can be waited for costs as much as half a request.
                self._under_way.add(gevent.spawn_raw(self._visit, act, intended_s))
        self._await_all()
        for visitor in tuple(self._under_way):
            gevent.kill(visitor)
        self._await_all()

    def _await_all(self) -> None:
        with gevent.Timeout(self.plan.timeout_s + GRACE_S, exception=False):
            while self._under_way:
                gevent.sleep(0.05)

    def _turned_away(self, intended_s: float) -> None:
        """Nobody more can be under way: by the site's doing where most wait for it, and then they wait in vain."""
        if self.waiting * 2 >= self.plan.in_flight_max:
            self.tally.answered(VISIT, intended_s, intended_s + self.plan.timeout_s, CROWDED)
        else:
            self.tally.undelivered(intended_s, THINKING)

    def _visits(self) -> Iterator[tuple[float, Act]]:
        plan = self.plan
        dice = random.Random(f"{plan.poisson_seed} {self._index}")
        for intended_s in share(times(plan.segments, plan.poisson_seed), self._index, plan.workers):
            yield intended_s, dice.choices(self._acts, cum_weights=self._weights)[0]

    def _visit(self, act: Act, intended_s: float) -> None:
        try:
            with self._clients.one() as client:
                act(Tab(client, self, intended_s))
        except (Failed, GreenletExit):
            pass  # whatever it asked for is counted, and the visitor goes; so does one who looks at a page as all ends
        except NotSent as error:
            self.tally.undelivered(intended_s, str(error))
        except Exception as error:  # noqa: BLE001 - whatever broke the visit off is counted by its kind
            self.tally.answered(VISIT, intended_s, self.passed_s(), type(error).__name__)
        finally:
            self._under_way.discard(gevent.getcurrent())


class Visitors(FastHttpUser):  # type: ignore[misc]
    """One in each worker: Locust starts it and stops it, and it sends that worker's share."""

    host = "http://plan.invalid"  # the plan says where to
    worker: Worker | None = None

    @task  # type: ignore[untyped-decorator]
    def visit(self) -> None:
        """All of it, then no more: raises StopUser, as Locust wants it."""
        assert self.worker is not None
        runner: WorkerRunner = self.environment.runner
        try:
            self.worker.send_all()
        except Exception as error:
            runner.send_message("broke", f"{type(error).__name__}: {error}")
            raise StopUser from error
        finally:
            runner.send_message("tally", self.worker.tally.drained())
        runner.send_message("done")
        raise StopUser


def work(host: str, port: int) -> int:
    """A worker's process: until the master says that it is over, or its standard input ends."""
    environment = Environment(user_classes=[Visitors])
    runner = environment.create_worker_runner(host, port)

    def dealt(environment: Environment, msg: Any, **_: Any) -> None:
        plan = Plan.model_validate_json(msg.data["plan"])
        if trouble := enough_files(plan.in_flight_max + SPARE_FILES):
            runner.send_message("broke", trouble)
            return
        gevent.get_hub().resolver = Names(plan.resolve)
        Visitors.worker = Worker(plan, msg.data["index"])
        served_first()  # a visitor who waits for a processor here would be taken for one who waits for the site
        gc.collect()
        gc.freeze()  # what is there by now stays: to look through it again and again holds visitors back
        runner.send_message("prepared")

    def begun(environment: Environment, msg: Any, **_: Any) -> None:
        assert Visitors.worker is not None
        Visitors.worker.begin_at(msg.data["start_at"])

    def counted() -> None:
        while True:
            gevent.sleep(1)
            if Visitors.worker is not None:
                runner.send_message("tally", Visitors.worker.tally.drained())

    runner.register_message("plan", dealt)
    runner.register_message("begin", begun)
    gevent.spawn(counted)
    runner.send_message("came")  # only now is somebody here who hears of a plan
    runner.greenlet.join()
    return 0


def watch(lost: Callable[[], object]) -> None:
    """Call `lost` when standard input ends: whoever held it is gone, or wants an end."""

    def read() -> None:
        while tp_read(sys.stdin.fileno(), 1024):
            pass
        lost()

    gevent.spawn(read)


class Master:
    """Deals the plan out, gathers what is counted, and writes it down whatever happens once visitors come."""

    def __init__(self, plan: Plan, header: Header, file: Path, bind: str, port: int, ready_timeout_s: float) -> None:
        self._plan = plan
        self._ready_timeout_s = ready_timeout_s
        self._header = header
        self._file = file
        self._runner: MasterRunner = Environment(user_classes=[Visitors]).create_master_runner(bind, port)
        self._tally = Tally()
        self._came: set[str] = set()
        self._prepared = 0
        self._done = 0
        self._stopped = ""
        self._runner.register_message("tally", lambda msg, **_: self._tally.add(msg.data))
        self._runner.register_message("came", self._one_came)
        self._runner.register_message("prepared", self._one_prepared)
        self._runner.register_message("done", self._one_done)
        self._runner.register_message("broke", lambda msg, **_: self.stop(f"a worker: {msg.data}"))

    def _one_came(self, msg: Any, **_: Any) -> None:
        """One too many has no share of its own, and Locust would let it take another's place."""
        self._came.add(msg.node_id)
        if len(self._came) > self._plan.workers:
            told = f"{len(self._came)} workers came, expected {self._plan.workers}"
            self.stop(f"{told}: start as many as --workers and --elsewhere say, and none for another run at this port")

    def _one_prepared(self, **_: Any) -> None:
        self._prepared += 1

    def _one_done(self, **_: Any) -> None:
        self._done += 1

    def stop(self, why: str) -> None:
        """End early."""
        self._stopped = self._stopped or why

    def run(self) -> int:
        """Returns the exit code; without a record where nobody came."""
        began = False
        try:
            self._await("came", lambda: len(self._came))
            self._deal()
            self._await("made ready", lambda: self._prepared)
            if not self._stopped:
                self._begin()
                began = True
                self._watch()
        finally:
            self._runner.quit()
            if began:
                with self._file.open("x", encoding="utf-8") as file:
                    for line in (self._header, *self._tally.lines(), self._end()):
                        write(file, line)
        if not began:
            sys.stderr.write(f"{self._stopped}\n")
        return FAILED if self._stopped else 0

    def _end(self) -> End:
        return End(incomplete=self._stopped, lost=self._tally.lost)

    def _await(self, what: str, count: Callable[[], int]) -> None:
        """Wait for every worker; whoever is missing at the deadline ends the run."""
        until = time.monotonic() + self._ready_timeout_s
        while count() < self._plan.workers and not self._stopped:
            if time.monotonic() > until:
                self.stop(f"{count()} of {self._plan.workers} workers {what} within {self._ready_timeout_s:g} s")
            gevent.sleep(0.1)

    def _deal(self) -> None:
        if self._stopped:
            return
        plan = self._plan.model_dump_json()
        for index, client in enumerate(sorted(self._came)):
            self._runner.send_message("plan", {"plan": plan, "index": index}, client)

    def _begin(self) -> None:
        """Second 0 is settled now; returns when it has come."""
        start_at = time.time() + HEAD_START_S
        self._header = self._header.model_copy(update={"began": datetime.fromtimestamp(start_at, UTC)})
        self._runner.send_message("begin", {"start_at": start_at})
        self._runner.start(self._plan.workers, spawn_rate=self._plan.workers)
        gevent.sleep(max(0.0, start_at - time.time()))
        sys.stderr.write(f"{BEGUN}\n")
        sys.stderr.flush()

    def _watch(self) -> None:
        lasting_s = duration_s(self._plan.segments)
        deadline_s = lasting_s + self._plan.timeout_s + GRACE_S + 10
        began_s = told_s = time.monotonic()
        while self._done < self._plan.workers and not self._stopped:
            gevent.sleep(0.1)
            passed_s = time.monotonic() - began_s
            if len(self._runner.clients.missing):
                self.stop("a worker is gone")
            elif passed_s > deadline_s:
                self.stop("the workers did not end in time")
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
    parser.add_argument("--ready", type=float, default=60, help="seconds to wait for the workers (master)")
    told = parser.parse_args(arguments)
    if told.part == "worker":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the master's: it ends the workers
        watch(lambda: os._exit(FAILED))  # nobody is left to tell
        return work(told.host, told.port)
    os.nice(BEHIND)
    header = Header.model_validate_json(sys.stdin.readline())
    plan = Plan.model_validate_json(sys.stdin.readline())
    master = Master(plan, header, told.out / FILE, told.host, told.port, told.ready)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, master.stop, BY_HAND)
    watch(lambda: master.stop("whoever started it is gone"))
    return master.run()


if __name__ == "__main__":
    sys.exit(main())
