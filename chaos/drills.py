"""The drills of the document's topology: what is done to whom, for how long, and what each layer may lose by it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from chaos.target import Facts
from chaos.timers import (
    NOTHING,
    Budget,
    Timers,
    address_takeover,
    data_node_full,
    data_node_killed,
    data_node_silent,
    endpoints_dropped,
    evicted_for_room,
    longest,
    machine_back,
    node_back,
    restarted,
    while_away,
)
from environments.model import Machine, Role

WRITES = ("write/row", "write/post", "write/upload")
# What answers without the database, as whoever it reaches; and whole pages, which need it.
ADDRESSES, PAGES = ("vip", "public"), ("page/vip", "page/public")
VISITORS = (*ADDRESSES, *PAGES)
API = ("api/read", "api/write")
DATA = ("sql", "write/row")
# A SQL node that starts joins its cluster first; a database that starts reads what it wrote since its last checkpoint.
JOIN_S, RECOVERY_S = 30.0, 60.0
# NDB's manual, TimeBetweenGlobalCheckpoints: what is younger is in no data node's log yet.
CHECKPOINT_S = 2.0
# A page whose making began while something was away is waited for as long (Nielsen, as the judgement has it).
PAGE_UNDER_WAY_S = 10.0


@dataclass(frozen=True)
class Blow:
    """A fault on whom `target` names, `after_s` into the drill, for `hold_s`; `peers` are whom it cuts off from.

    `takes_data`: by this one, whoever holds the data is gone, all at once.
    """

    fault: str
    target: str
    hold_s: float = 30.0
    after_s: float = 0.0
    count: int = 1
    peers: str = ""
    takes_data: bool = False


@dataclass(frozen=True)
class Moment:
    """What budgets follow from: the timers, who has which part, and who is struck."""

    live: Timers
    facts: Facts
    struck: Sequence[Machine]
    hold_s: float

    def visitors(self) -> Budget:
        """What the site's visitors may notice while the struck machines are silent.

        Some are sent to a replica that is gone until its node is known to be; nobody is answered only until another
        node has the address. It moves back, once more, with its node.
        """
        takeover = address_takeover(self.live, len(self.facts.with_role(Role.CONTROL_PLANE, Role.WORKER)))
        announcing = any(machine.name == self.facts.announcer for machine in self.struck)
        serving = any((self.facts.replicas or {}).get(machine.name) for machine in self.struck)
        found = longest(*([takeover] if announcing else []), *([endpoints_dropped(self.live)] if serving else []))
        return replace(found, silence=takeover, back=takeover if announcing else None) if found.parts else NOTHING

    def page(self, budget: Budget) -> Budget:
        """What whole pages may lose where what they are made of may lose `budget`.

        They are asked once a second: who fails several in a row is not told from who fails all. A machine that boots
        takes processors from those that make them.
        """
        parts = {**budget.parts, "a page under way": PAGE_UNDER_WAY_S} if budget.parts else {}
        return Budget(parts, back=Budget({"boot": self.live.boot_s}))


Budgets = Callable[[Moment], Mapping[str, Budget]]


@dataclass(frozen=True)
class Drill:
    """Blows, and what each layer may lose by them. `turns` repeats it on other machines, whole in between.

    `loss_window_s`: what was acknowledged so shortly before a blow may be lost, where all that hold it go at once.
    """

    name: str
    does: str
    blows: tuple[Blow, ...]
    budgets: Budgets
    turns: int = 1
    loss_window_s: float = 0.0

    @property
    def hold_s(self) -> float:
        """From the first blow to the last heal."""
        return max(blow.after_s + blow.hold_s for blow in self.blows)


def _each(layers: Sequence[str], budget: Callable[[Moment], Budget]) -> Budgets:
    return lambda moment: dict.fromkeys(layers, budget(moment))


def _nothing(*layers: str) -> Budgets:
    return _each(layers, lambda _: NOTHING)


def _visits(moment: Moment, budget: Budget) -> Mapping[str, Budget]:
    """Visitors may lose `budget`, whatever they ask for."""
    return dict.fromkeys(ADDRESSES, budget) | dict.fromkeys(PAGES, moment.page(budget))


def _visitors(moment: Moment) -> Mapping[str, Budget]:
    return _visits(moment, moment.visitors())


def _stands_in(budget: Callable[[Timers], Budget]) -> Budgets:
    """One data node for the other: statements wait, and none is lost. Posts are too few to tell silence by."""
    return lambda moment: {
        **dict.fromkeys(DATA, budget(moment.live)),
        "write/post": replace(budget(moment.live), silence=None),
        **_visits(moment, budget(moment.live)),
    }


def _back(**afterwards: float) -> Callable[[Moment], Budget]:
    return lambda moment: machine_back(moment.live, moment.hold_s, **afterwards)


def _cluster_back(moment: Moment) -> Budget:
    return machine_back(moment.live, moment.hold_s, **node_back(moment.live))


def _master_back(moment: Moment) -> Mapping[str, Budget]:
    """Visitors need no master; of two members of etcd, neither decides anything without the other."""
    return {**_visitors(moment), **dict.fromkeys(API, _cluster_back(moment))}


def _everything_back(moment: Moment) -> Mapping[str, Budget]:
    budget = machine_back(moment.live, moment.hold_s, recovery_of_the_database=RECOVERY_S, **node_back(moment.live))
    return dict.fromkeys((*VISITORS, *DATA, "write/post"), budget)


def _files_back(moment: Moment) -> Mapping[str, Budget]:
    """Hard mounts wait; grace is for locks and state, and ends for all at once."""
    budget = machine_back(moment.live, moment.hold_s, grace_period=moment.live.nfs_grace_s)
    return dict.fromkeys(("nfs", "nfs/read", "nfs/write", *VISITORS, "write/upload"), budget) | dict.fromkeys(
        DATA, NOTHING
    )


def _public_back(budget: Callable[[Moment], Budget]) -> Budgets:
    """The public host alone; the virtual address does without the tunnel."""
    return lambda moment: {
        "public": budget(moment),
        "page/public": moment.page(budget(moment)),
        **_nothing("vip", "page/vip")(moment),
    }


DRILLS: Mapping[str, Drill] = {
    drill.name: drill
    for drill in (
        # Workers
        Drill(
            "worker-power",
            "a worker that serves visitors loses its power",
            (Blow("power cut", "worker with a replica that does not announce", 60),),
            _visitors,
        ),
        Drill(
            "announcer-power",
            "the node that announces the virtual address loses its power",
            (Blow("power cut", "announcer", 60),),
            _visitors,
        ),
        Drill(
            "two-workers-power",
            "two of the workers lose their power",
            (Blow("power cut", "worker", 60, count=2),),
            _visitors,
        ),
        Drill(
            "announcer-network",
            "the node that announces the virtual address loses its network",
            (Blow("network down", "announcer", 30),),
            _visitors,
        ),
        Drill(
            "kubelet-stopped",
            "a worker's kubelet stops",
            (Blow("kubelet stopped", "worker with a replica", 30),),
            _nothing(*VISITORS, *WRITES),
        ),
        Drill(
            "containerd-stopped",
            "a worker's container runtime stops",
            (Blow("containerd stopped", "worker with a replica", 20),),
            _nothing(*VISITORS, *WRITES),
        ),
        # Masters
        Drill(
            "endpoint-master-power",
            "the master that is the API's endpoint loses its power",
            (Blow("power cut", "API endpoint", 30),),
            _master_back,
        ),
        Drill(
            "other-master-power",
            "the master that is not the API's endpoint loses its power",
            (Blow("power cut", "other master", 30),),
            _master_back,
        ),
        Drill(
            "endpoint-announcer-power",
            "the master that is the API's endpoint and announces the virtual address loses its power",
            (Blow("power cut", "API endpoint that announces", 30),),
            _master_back,
        ),
        # Pods
        Drill(
            "replica-deleted",
            "a replica is deleted",
            (Blow("replica deleted", "worker with a replica", 20),),
            _nothing(*VISITORS),
        ),
        Drill(
            "rolling-restart",
            "the replicas are restarted one after another",
            (Blow("rolling restart", "API endpoint", 40),),
            _nothing(*VISITORS),
        ),
        # The database
        Drill(
            "data-node-killed",
            "each data node in turn is killed",
            (Blow("ndbmtd killed", "data node", 10),),
            _stands_in(data_node_killed),
            turns=2,
        ),
        Drill(
            "data-node-power",
            "each data node in turn loses its power",
            (Blow("power cut", "data node", 20),),
            _stands_in(data_node_silent),
            turns=2,
        ),
        Drill(
            "data-node-hang",
            "each data node in turn hangs",
            (Blow("hang", "data node", 20),),
            _stands_in(data_node_silent),
            turns=2,
        ),
        Drill(
            "data-node-partition",
            "the data nodes are cut off from each other",
            (Blow("partition", "data node", 20, peers="data node"),),
            _stands_in(data_node_silent),
            turns=2,
        ),
        Drill(
            "management-power",
            "the management node loses its power while it is in use",
            (Blow("power cut", "management node", 20),),
            _nothing(*DATA, *VISITORS),
        ),
        Drill(
            "arbitrator-trap",
            "the management node and then a data node lose their power",
            (Blow("power cut", "management node", 40), Blow("power cut", "data node", 25, after_s=15, takes_data=True)),
            _each((*DATA, *PAGES), _back(recovery_of_the_database=RECOVERY_S, joining=JOIN_S)),
            loss_window_s=CHECKPOINT_S,
        ),
        Drill(
            "sql-power",
            "the SQL node loses its power while it is in use",
            (Blow("power cut", "SQL node", 15),),
            _each((*DATA, "write/post", *PAGES), _back(joining=JOIN_S)),
        ),
        # Files and the edge
        Drill(
            "file-server-power",
            "the file server loses its power for half a minute",
            (Blow("power cut", "file server", 30),),
            _files_back,
        ),
        Drill(
            "connector-power",
            "the connector of the tunnel loses its power",
            (Blow("power cut", "connector", 15),),
            _public_back(_back(dialling_out=10)),
        ),
        Drill(
            "connector-killed",
            "the connector of the tunnel is killed",
            (Blow("connector killed", "connector", 15),),
            _public_back(lambda moment: restarted(moment.live, 10)),
        ),
        # Disks
        Drill(
            "worker-disk-full",
            "a worker's disk is full",
            (Blow("/var full", "worker with a replica that does not announce", 40),),
            lambda moment: _visits(moment, evicted_for_room(moment.live)),
        ),
        Drill(
            "data-node-disk-full",
            "a data node's disk is full",
            (Blow("database directory full", "data node", 30),),
            lambda moment: _stands_in(lambda live: data_node_full(live, moment.hold_s))(moment),
        ),
        Drill(
            "export-full",
            "the file server's disk is full",
            (Blow("export full", "file server", 20),),
            lambda moment: {**_nothing(*VISITORS, *DATA)(moment), "write/upload": while_away(20, noticing=10)},
        ),
        # All of it
        Drill(
            "kubernetes-off",
            "the whole of Kubernetes loses its power",
            (Blow("power cut", "kubernetes", 20),),
            lambda moment: {**_nothing(*DATA)(moment), **dict.fromkeys(VISITORS, _cluster_back(moment))},
        ),
        Drill(
            "database-off",
            "the whole of the database loses its power",
            (Blow("power cut", "database", 15, takes_data=True),),
            _each((*DATA, "write/post", *PAGES), _back(recovery_of_the_database=RECOVERY_S, joining=JOIN_S)),
            loss_window_s=CHECKPOINT_S,
        ),
        Drill(
            "everything-off",
            "everything loses its power at once",
            (Blow("power cut", "everything", 10, takes_data=True),),
            _everything_back,
            loss_window_s=CHECKPOINT_S,
        ),
        Drill(
            "hypervisor-lost",
            "one of several hypervisors is lost",
            (Blow("hypervisor lost", "everything", 60, takes_data=True),),
            _everything_back,
            loss_window_s=CHECKPOINT_S,
        ),
    )
}
