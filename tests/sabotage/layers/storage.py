"""Lies about the files that replicas share."""

import base64
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from environments.model import Machine, Role
from tests.sabotage.layers.database import unit_disabled
from tests.sabotage.layers.nodes import worker
from tests.sabotage.lie import Lie, Tell, on
from tests.sabotage.stage import Stage

LAYER = "storage"
CONFIG, UNIT = "/etc/ganesha/ganesha.conf", "nfs-ganesha"
# What the server is told is done, and is not: the C library's own functions, doing nothing.
LAZY = "int fsync(int f) { return 0; } int fdatasync(int f) { return 0; }"
LIBRARY = "/var/lib/lazy.so"
DROP_IN = f"/run/systemd/system/{UNIT}.service.d"


def server(stage: Stage) -> Machine:
    """The file server."""
    return stage.with_role(Role.NFS)


def exported(edit: str) -> Tell:
    """The export is another one."""
    return on(
        server,
        f"cp -p {CONFIG} {CONFIG}.sabotage; sed -i '{edit}' {CONFIG}; ! cmp -s {CONFIG} {CONFIG}.sabotage; "
        f"systemctl restart {UNIT}",
        f"mv {CONFIG}.sabotage {CONFIG}; systemctl restart {UNIT}",
    )


@contextmanager
def lazy(stage: Stage) -> Iterator[None]:
    """The server's programs think that what they have written is on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "lazy.so"
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=LAZY, text=True, check=True)
        coded = base64.b64encode(library.read_bytes()).decode()
    tell = (
        f"echo {coded} | base64 -d > {LIBRARY}; mkdir -p {DROP_IN}; "
        f"printf '[Service]\\nEnvironment=LD_PRELOAD={LIBRARY}\\n' > {DROP_IN}/lazy.conf; "
        f"systemctl daemon-reload; systemctl restart {UNIT}"
    )
    undo = f"rm -rf {DROP_IN}; systemctl daemon-reload; systemctl restart {UNIT}; rm -f {LIBRARY}; sync"
    with on(server, tell, undo)(stage):
        yield


@contextmanager
def wrong_owner(stage: Stage) -> Iterator[None]:
    """Root alone may write."""
    folder = f"{stage.environment.nfs.export}/wp-content"
    with on(server, f"chown root:root {folder}; chmod 755 {folder}", f"chown 33:33 {folder}")(stage):
        yield


HELPER = "/sbin/mount.nfs"
SHAM = "#!/bin/sh\\nfor word; do case $word in /*) target=$word ;; esac; done\\nexec mount -i -t tmpfs sham $target\\n"
LIES = (
    Lie(
        "exported-to-the-world",
        LAYER,
        ("P8",),
        "expected it exported within .* only, found",
        exported("s/Clients = .*/Clients = *;/"),
    ),
    Lie(
        "exported-to-others",
        LAYER,
        ("P7",),
        "exported to 172.31.0.0/24, found",
        exported("s|Clients = .*|Clients = 10.20.20.0/24;|"),
        scenarios=("A master sees the export",),
        may=("P3", "P4", "P8", "P9", "P10"),
    ),
    Lie(
        "read-only-export",
        LAYER,
        ("P7",),
        "expected .* to be written to, found",
        exported("s/Access_Type = RW/Access_Type = RO/"),
        scenarios=("A file that one worker writes is read on all",),
        may=("P3", "P4", "P9", "P10"),
    ),
    Lie(
        "owners-squashed",
        LAYER,
        ("P7",),
        "expected .* to be 755 1000 1000|expected .* to be 600 0 0",
        exported("s/No_Root_Squash/All_Squash/"),
        scenarios=("Owners and modes are the same everywhere",),
    ),
    Lie(
        "acknowledged-from-memory",
        LAYER,
        ("P7",),
        "expected all of an acknowledged file on the disk, found",
        lazy,
        scenarios=("What is acknowledged is on the server's disk",),
    ),
    Lie(
        "file-server-not-at-boot",
        LAYER,
        ("P12",),
        f"expected {UNIT} active and enabled, found active and disabled",
        unit_disabled(Role.NFS, UNIT),
    ),
    Lie(
        "file-server-stays-away",
        LAYER,
        ("P7",),
        "expected the writer to go on within",
        unit_disabled(Role.NFS, UNIT),
        scenarios=("The file server loses its power while a worker writes",),
    ),
    Lie(
        "a-mount-helper-that-mounts-nothing",
        LAYER,
        ("P7",),
        "mounted by NFS on .*, found another disk",
        on(
            worker,
            f"mv {HELPER} {HELPER}.sabotage; printf '{SHAM}' > {HELPER}; chmod 755 {HELPER}",
            f"mv {HELPER}.sabotage {HELPER}",
        ),
        scenarios=("A file that one worker writes is read on all",),
    ),
    Lie(
        "wrong-owner",
        "site",
        ("P7",),
        "expected to write, found .*Permission denied",
        wrong_owner,
        scenarios=("Replicas may write, and wait for their files without end",),
    ),
)
