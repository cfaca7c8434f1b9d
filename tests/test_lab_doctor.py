"""What the doctor says about machines that lack something."""

from dataclasses import replace

import pytest

from lab import doctor
from lab.doctor import COMMANDS, Facts, misses

GOOD = Facts(
    is_root=True,
    commands=frozenset(COMMANDS),
    go=(1, 22),
    file_systems=frozenset(doctor.FILE_SYSTEMS),
    link_kinds=frozenset(doctor.LINK_KINDS),
    devices=frozenset({"/dev/fuse", "/dev/loop-control", "/dev/kmsg"}),
    netfilter=frozenset({"br_netfilter", "nf_tables"}),
    controllers=frozenset(doctor.CONTROLLERS),
    memory_free_mib=8192,
    state_free_mib=100_000,
    cache_free_mib=100_000,
    same_disk=True,
    content_built=False,
)


def test_a_good_machine_lacks_nothing() -> None:
    assert misses(GOOD) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(GOOD, is_root=False), ["root", "sudo"]),
        (replace(GOOD, commands=frozenset(COMMANDS) - {"lxc-start", "umoci"}), ["apt-get install lxc umoci"]),
        (replace(GOOD, go=None), ["Go 1.22", "none"]),
        (replace(GOOD, go=(1, 19)), ["Go 1.22", "1.19"]),
        (replace(GOOD, file_systems=frozenset({"ext4", "fuse"})), ["no overlay", "modprobe overlay"]),
        (replace(GOOD, link_kinds=frozenset({"veth", "bridge"})), ["modprobe vxlan"]),
        (replace(GOOD, netfilter=frozenset({"nf_tables"})), ["br_netfilter"]),
        (replace(GOOD, netfilter=frozenset({"br_netfilter"})), ["nf_tables"]),
        (replace(GOOD, devices=frozenset({"/dev/loop-control", "/dev/kmsg"})), ["/dev/fuse"]),
        (replace(GOOD, controllers=frozenset(doctor.CONTROLLERS) - {"memory"}), ["controllers memory"]),
        (replace(GOOD, memory_free_mib=1000), ["1000 MiB of memory"]),
        (replace(GOOD, state_free_mib=20_000), ["20000 MiB", "one file system", "28672"]),
        (replace(GOOD, same_disk=False, cache_free_mib=10), ["10 MiB", "~/.cache/haproof"]),
    ],
)
def test_each_miss_is_one_sentence_that_says_what_to_do(facts: Facts, words: list[str]) -> None:
    found = misses(facts)
    assert len(found) == 1
    assert "\n" not in found[0]
    assert found[0].endswith(".")
    for word in words:
        assert word in found[0]


def test_content_in_the_cache_needs_no_go_and_no_room_to_build() -> None:
    assert misses(replace(GOOD, content_built=True, go=None, state_free_mib=17_000)) == []


def test_all_misses_are_told_at_once() -> None:
    assert len(misses(replace(GOOD, is_root=False, go=None, memory_free_mib=1))) == 3


@pytest.mark.parametrize(
    ("text", "version"), [("go1.26.1\n", (1, 26)), ("go1.22rc2", (1, 22)), ("", None), ("devel +abc", None)]
)
def test_go_version(text: str, version: tuple[int, int] | None) -> None:
    assert doctor.parse_go_version(text) == version


def test_free_memory() -> None:
    assert doctor.parse_available_mib("MemTotal: 100 kB\nMemAvailable:   2048000 kB\n") == 2000
