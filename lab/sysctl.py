"""Kernel settings of the whole machine that guests need or change: recorded first, put back at the end."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/proc/sys")

# At least this much: ten systemd guests use 126 of the default 128 inotify instances, and the eleventh dies.
AT_LEAST = {"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 524288}
# kubelet in a guest writes these, and they are the machine's: recorded so that they can be put back.
GUESTS_WRITE = (
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
CONNTRACK_MAX = "net/netfilter/nf_conntrack_max"


def wanted(current: Mapping[str, int], cores: int) -> dict[str, int]:
    """Decide what to write, given the present values of the settings that exist.

    kube-proxy compares nf_conntrack_max for equality with max(32768 x cores, 131072) (its defaults maxPerCore
    and min) and cannot write it inside a guest, so the machine must already have that value.
    """
    changes = {name: least for name, least in AT_LEAST.items() if name in current and current[name] < least}
    exact = max(cores * 32768, 131072)
    if CONNTRACK_MAX in current and current[CONNTRACK_MAX] != exact:
        changes[CONNTRACK_MAX] = exact
    return changes


def apply(record: Path) -> None:
    """Write what is wanted, after recording the present values in `record`; raises OSError.

    Call in the machine's own network namespace. A record that is there already is kept: it holds the values
    from before the lab.
    """
    names = [*AT_LEAST, *GUESTS_WRITE, CONNTRACK_MAX]
    current = {name: int((ROOT / name).read_text()) for name in names if (ROOT / name).exists()}
    if not record.exists():
        record.write_text(json.dumps(current))
    for name, value in wanted(current, os.cpu_count() or 1).items():
        (ROOT / name).write_text(str(value))


def restore(record: Path) -> None:
    """Put the recorded values back and forget them; nothing to do when there is no record; raises OSError."""
    if not record.exists():
        return
    for name, value in json.loads(record.read_text()).items():
        path = ROOT / name
        if path.exists() and int(path.read_text()) != value:
            path.write_text(str(value))
    record.unlink()
