"""The lab as its people use it: bring-ups by their command line, and its API from inside its network."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from proxmoxer import ProxmoxAPI
from rich.console import Console

from environments.load import find, load
from lab import namespace
from lab.lock import live_owner
from lab.paths import Paths
from provisioning.bringup import actions
from provisioning.build import bring_up
from provisioning.report import Terminal
from provisioning.session import Session

ROOT = Path(__file__).parent.parent


def build(env: Path | str = "lab", *options: str) -> subprocess.CompletedProcess[str]:
    """One whole run of the bring-up, as people start it."""
    command = [sys.executable, "-m", "provisioning", "--env", str(env), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def whole(session: Session, since: str = "") -> None:
    """The target as its environment says, by a build that ends well; raises BuildFailed.

    From the action named `since` on, where nothing before it can have been touched.
    """
    with session.state.locked("a test of the lab"):
        following = actions(session.environment, session.state)
        if since:
            following = following[[action.name for action in following].index(since) :]
        bring_up(following, Terminal(Console(stderr=True)))


def in_lab(work: Callable[[], object]) -> str:
    """Do `work` in a child process inside the lab's network, and return what it printed."""
    owner = live_owner(Paths.default())
    assert owner, "the lab is not up"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        namespace.join(owner.pid)
        os.write(writing, str(work()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return told


def api() -> ProxmoxAPI:
    """The lab's API, for use inside its network."""
    description = load(find("lab")).hypervisor
    return ProxmoxAPI(
        description.api_url.host,
        user="root@pam",
        token_name="haproof",
        token_value=description.token.reveal(),
        verify_ssl=description.ca,
        timeout=30,
    )


def machines() -> list[str]:
    """Names of all machines on the lab's hypervisor, templates left out."""
    told = in_lab(lambda: json.dumps([row["name"] for row in api().nodes("pve").qemu.get() if not row.get("template")]))
    return sorted(json.loads(told))
