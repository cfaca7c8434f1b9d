"""Lies about the files that replicas share."""

from collections.abc import Iterator
from contextlib import contextmanager

from environments.model import Machine, Role
from tests.sabotage.layers.database import unit_disabled
from tests.sabotage.layers.nodes import sham
from tests.sabotage.lie import Lie, Tell, edited, on
from tests.sabotage.stage import Stage

LAYER = "storage"
CONFIG, UNIT = "/etc/ganesha/ganesha.conf", "nfs-ganesha"
DROP_IN = f"/run/systemd/system/{UNIT}.service.d"


def server(stage: Stage) -> Machine:
    """The file server."""
    return stage.with_role(Role.NFS)


def exported(edit: str) -> Tell:
    """The export is another one."""
    again = f"systemctl restart {UNIT}"
    return on(server, f"{edited(CONFIG, edit)}; {again}", f"mv {CONFIG}.sabotage {CONFIG}; {again}")


def allowed(calls: str) -> Tell:
    """The server's program may do no more than systemd.exec(5) lets it."""
    again = f"systemctl daemon-reload; systemctl restart {UNIT}"
    return on(
        server,
        f"mkdir -p {DROP_IN}; printf '[Service]\\nSystemCallFilter={calls}\\n' > {DROP_IN}/sabotage.conf; {again}",
        f"rm -rf {DROP_IN}; {again}; sync",
    )


@contextmanager
def wrong_owner(stage: Stage) -> Iterator[None]:
    """Root alone may write."""
    folder = f"{stage.environment.nfs.export}/wp-content"
    with on(server, f"chown root:root {folder}; chmod 755 {folder}", f"chown 33:33 {folder}")(stage):
        yield


MOUNTS_NOTHING = "for word; do case $word in /*) target=$word ;; esac; done; exec mount -i -t tmpfs sham $target"
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
        exported("s/No_Root_Squash;/All_Squash; Anonymous_Uid = 33; Anonymous_Gid = 33;/"),
        scenarios=("Owners and modes are the same everywhere",),
    ),
    Lie(
        "acknowledged-from-memory",
        LAYER,
        ("P7",),
        "expected all of an acknowledged file on the disk, found",
        allowed("~fsync:0 fdatasync:0"),  # answered with success, and not made
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
        may=("P12",),
    ),
    Lie(
        "a-mount-helper-that-mounts-nothing",
        LAYER,
        ("P7",),
        "mounted by NFS on .*, found another disk",
        sham("/sbin/mount.nfs", MOUNTS_NOTHING),
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
