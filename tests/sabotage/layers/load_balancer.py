"""Lies about virtual addresses: the pool, who announces them, and what answers ARP."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any

from chaos.facts import Live
from environments.model import Role
from provisioning.addons import PoolDeclared
from provisioning.poll import poll
from tests.sabotage.layers.cluster import kubectl
from tests.sabotage.lie import Lie, Tell, on
from tests.sabotage.stage import Stage

LAYER = "load_balancer"
METALLB = "-n metallb-system"
ANNOUNCED_TIMEOUT_S = 30


def pooled(*ranges: str) -> Tell:
    """The pool holds the site's own address, and these; put right by the build's own action."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        described, vip = stage.environment.metallb, stage.environment.wordpress.vip
        words = ", ".join(f'"{one}"' for one in (f"{vip}/32", *ranges))
        patch = f'{{"spec": {{"addresses": [{words}]}}}}'
        try:
            stage.kubectl(f"{METALLB} patch ipaddresspool {described.pool} --type=merge -p '{patch}'")
            yield
        finally:
            PoolDeclared(stage.cluster, lambda: True).apply()

    return told


def after_the_vip(first: int, last: int) -> Tell:
    """A pool that goes on from the site's address, so and so far."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        vip = int(stage.environment.wordpress.vip)
        with pooled(f"{IPv4Address(vip + first)}-{IPv4Address(vip + last)}")(stage):
            yield

    return told


@contextmanager
def unannounced(stage: Stage) -> Iterator[None]:
    """Nobody announces what the controller gives out."""
    try:
        stage.kubectl(f"{METALLB} delete l2advertisement {stage.environment.metallb.advertisement}")
        yield
    finally:
        PoolDeclared(stage.cluster, lambda: True).apply()


@contextmanager
def by_one_master(stage: Stage) -> Iterator[None]:
    """Only the first master announces, and does so before anything is judged."""
    name, live = stage.with_role(Role.CONTROL_PLANE).name, Live(stage.session, stage.cluster)

    def select(nodes: Sequence[dict[str, Any]] | None) -> None:
        patch = json.dumps({"spec": {"nodeSelectors": nodes}})
        stage.kubectl(
            f"{METALLB} patch l2advertisement {stage.environment.metallb.advertisement} --type=merge -p '{patch}'"
        )

    def announces() -> bool:
        return live.owners()["announcer"] == name

    try:
        select([{"matchLabels": {"kubernetes.io/hostname": name}}])
        poll(f"{name} announces", announces, timeout_s=ANNOUNCED_TIMEOUT_S, interval_s=0.5)
        yield
    finally:
        select(None)


@contextmanager
def two_answers(stage: Stage) -> Iterator[None]:
    """The file server has every address of the pool but the site's, and says so to whoever asks."""
    pool, vip = stage.environment.metallb.range, stage.environment.wordpress.vip
    others = [IPv4Address(n) for n in range(int(pool.first), int(pool.last) + 1) if IPv4Address(n) != vip]
    add, remove = (
        "; ".join(f"ip addr {verb} {one}/32 dev lo" + (" || true" if verb == "del" else "") for one in others)
        for verb in ("add", "del")
    )
    with on(lambda s: s.with_role(Role.NFS), add, remove)(stage):
        yield


LIES = (
    Lie(
        "strict-arp-off",
        LAYER,
        ("P4",),
        "expected ipvs.strictARP true, found False",
        kubectl(
            "-n kube-system get cm kube-proxy -o json > /run/sabotage.json && "
            "sed 's/strictARP: true/strictARP: false/' /run/sabotage.json | kubectl replace -f -",
            "-n kube-system get cm kube-proxy -o json | "
            "sed 's/strictARP: false/strictARP: true/' | kubectl replace -f -",
        ),
        scenarios=("kube-proxy leaves ARP to the announcer",),
    ),
    Lie(
        "pool-outside-the-network",
        LAYER,
        ("P4",),
        "expected an address of",
        pooled("172.31.9.1-172.31.9.9"),
        scenarios=("A Service gets an address of the pool",),
    ),
    Lie(
        "pool-of-one-address",
        LAYER,
        ("P4",),
        "found None",
        after_the_vip(1, 1),
        scenarios=("Two Services get two addresses",),
    ),
    Lie(
        "pool-larger-than-declared",
        LAYER,
        ("P4",),
        "expected no address for the Service that came too late",
        after_the_vip(1, 19),
        scenarios=("The end of the pool is an error and not a theft",),
    ),
    Lie(
        "address-announced-by-one-master",
        "limits",
        ("P1",),
        "expected the site back",
        by_one_master,
        scenarios=("Losing the master that the API is named after takes the API away and leaves the site up",),
        may=("P3", "P4", "P7", "P9", "P10"),
    ),
    Lie(
        "two-answers-to-arp",
        LAYER,
        ("P4",),
        "expected one machine to answer, found .*,",
        two_answers,
        may=("P8",),
        scenarios=("One node answers ARP",),
    ),
    Lie(
        "nobody-announces",
        LAYER,
        ("P4",),
        "expected one machine to answer, found nobody",
        unannounced,
        scenarios=("One node answers ARP",),
        may=("P3", "P7", "P9", "P10"),
    ),
)
