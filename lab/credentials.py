"""Secrets of the lab's own target, made once: what an owner would choose for a real one."""

import secrets
from pathlib import Path

from lab.durable import write_bytes

NAMES = ("wordpress-db-password", "wordpress-admin-password", "cloudflare-token", "mailbox-token")


def ensure(state: Path) -> None:
    """Make each secret that is not there yet, as a file of mode 600 below `state`."""
    state.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if not (state / name).exists():
            write_bytes(state / name, secrets.token_urlsafe(24).encode() + b"\n", mode=0o600)
