"""Whom a fault strikes, and how long that may be felt."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import V1Toleration

from chaos.target import CANDIDATES, Facts, NobodyNow, NoSuchTarget, select
from chaos.timers import (
    Timers,
    address_takeover,
    data_node_full,
    data_node_killed,
    data_node_silent,
    dns_ttl_s,
    endpoints_dropped,
    evicted_for_room,
    replaced_elsewhere,
    suspicion_s,
    tolerated_s,
)
from environments.load import find, load

ENVIRONMENT = load(find("lab"))
FACTS = Facts(
    ENVIRONMENT.machines,
    endpoint=ENVIRONMENT.kubernetes.control_plane_endpoint,
    announcer="srvk8s-worker02",
    arbitrator="srvdbm-mgm01",
    etcd_leader="srvk8s-master01",
    replicas={"srvk8s-worker01": 1, "srvk8s-worker02": 1, "srvk8s-worker03": 1},
)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("API endpoint", {"srvk8s-master01"}),
        ("other master", {"srvk8s-master02"}),
        ("announcer", {"srvk8s-worker02"}),
        ("arbitrator", {"srvdbm-mgm01"}),
        ("worker with a replica that announces", {"srvk8s-worker02"}),
        ("SQL node", {"srvdbm-sql01"}),
        ("srv-nfs01", {"srv-nfs01"}),
        ("database", {"srvdbm-mgm01", "srvdbm01", "srvdbm02", "srvdbm-sql01"}),
    ],
)
def test_words_stand_for_machines(words: str, names: set[str]) -> None:
    assert {machine.name for machine in select(words, FACTS, seed=0)} == names


@given(seed=st.integers(), count=st.integers(1, 2))
def test_a_seed_picks_the_same_again(seed: int, count: int) -> None:
    words = "worker with a replica that does not announce"
    picked = select(words, FACTS, seed, count)
    assert picked == select(words, FACTS, seed, count)
    assert {machine.name for machine in picked} <= {"srvk8s-worker01", "srvk8s-worker03"}
    assert len(picked) == count


def test_every_candidate_comes_to_its_turn() -> None:
    picked = {select("data node", FACTS, seed)[0].name for seed in range(20)}
    assert picked == {"srvdbm01", "srvdbm02"}


@pytest.mark.parametrize(
    ("words", "count", "told"),
    [
        ("anouncer", 1, "did you mean announcer"),
        ("srvdbm3", 1, "srvdbm"),
        ("zzzzz", 1, "there are master, worker"),
        ("worker", 4, "4 of “worker” are wanted, and there is srvk8s-worker01"),
    ],
)
def test_what_there_is_not_is_told_with_the_nearest_names(words: str, count: int, told: str) -> None:
    with pytest.raises(NoSuchTarget, match=told):
        select(words, FACTS, 0, count)


def test_a_part_that_nobody_has_is_no_target() -> None:
    with pytest.raises(NoSuchTarget, match="there is none"):
        select("announcer", replace(FACTS, announcer=None), 0)


@pytest.mark.parametrize("words", CANDIDATES)
def test_whatever_can_be_said_can_be_struck(words: str) -> None:
    announcing = replace(FACTS, announcer=FACTS.endpoint) if words == "API endpoint that announces" else FACTS
    assert select(words, announcing, seed=3)


def test_an_endpoint_that_does_not_announce_is_nobody_and_who_does_is_told() -> None:
    with pytest.raises(NobodyNow, match=r"there is none .*announcer: srvk8s-worker02"):
        select("API endpoint that announces", FACTS, 0)


def test_budgets_are_the_sums_of_their_timers() -> None:
    timers = Timers(ndb_heartbeat_s=1.5)
    assert data_node_silent(timers).total_s == 4 * 1.5 + 1.5 + 7.5
    assert endpoints_dropped(timers).total_s == 47
    assert replaced_elsewhere(timers).total_s == 347
    assert evicted_for_room(timers).total_s == 3 * 10 + 2
    full = data_node_full(timers, 30)
    assert (full.total_s, full.held_s) == (30 + data_node_killed(timers).total_s, 30)
    assert str(endpoints_dropped(Timers(node_grace_s=50))).startswith("node grace period 50 s + ")


def test_a_speaker_is_suspected_the_longer_the_more_there_are() -> None:
    assert suspicion_s(Timers(), 5) == 4.0
    assert suspicion_s(Timers(), 100) == 8.0
    assert address_takeover(Timers(), 5).total_s == pytest.approx(9.5)


def test_timers_are_read_as_their_parts_write_them() -> None:
    corefile = ".:53 {\n    kubernetes cluster.local {\n       ttl 30\n    }\n    cache 10\n}\n"
    assert dns_ttl_s(corefile) == 30
    assert dns_ttl_s(".:53 {\n    kubernetes cluster.local\n}\n") == Timers.dns_ttl_s
    unreachable = V1Toleration(key="node.kubernetes.io/unreachable", effect="NoExecute", toleration_seconds=20)
    assert tolerated_s([V1Toleration(key="other"), unreachable]) == 20
    assert tolerated_s([V1Toleration(key="node.kubernetes.io/unreachable")]) == math.inf
    assert tolerated_s([]) == Timers.toleration_s
