"""What an account holds: tunnels, DNS records, Access; kept in one JSON file, read and written as a whole."""

import json
import secrets
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from lab.durable import write_bytes

Resource = dict[str, Any]
KINDS = ("tunnels", "records", "identity_providers", "policies", "apps", "service_tokens")


def now() -> str:
    """The moment as the API writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Store:
    """The account's resources by kind and id, and the key that Access signs with."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "cloudflare.json"
        self._lock = threading.RLock()
        self._held: dict[str, dict[str, Resource]] = {kind: {} for kind in KINDS}
        if self._path.exists():
            self._held |= json.loads(self._path.read_text())
        self.key = _signing_key(folder / "access.key")

    def all(self, kind: str) -> list[Resource]:
        """Every resource of a kind, oldest first."""
        with self._lock:
            return list(self._held[kind].values())

    def get(self, kind: str, identifier: str) -> Resource | None:
        """One of them, if it is there."""
        with self._lock:
            return self._held[kind].get(identifier)

    def add(self, kind: str, resource: Resource) -> Resource:
        """A new one, with an id and a date."""
        made = {"id": str(uuid.uuid4()), "created_at": now(), **resource}
        return self.put(kind, made)

    def put(self, kind: str, resource: Resource) -> Resource:
        """One in its new state."""
        with self._lock:
            self._held[kind][resource["id"]] = resource
            self._save()
        return resource

    def remove(self, kind: str, identifier: str) -> Resource | None:
        """Take one away."""
        with self._lock:
            found = self._held[kind].pop(identifier, None)
            self._save()
        return found

    def _save(self) -> None:
        write_bytes(self._path, json.dumps(self._held).encode(), mode=0o600)


def _signing_key(path: Path) -> rsa.RSAPrivateKey:
    if not path.exists():
        made = rsa.generate_private_key(65537, 2048)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        write_bytes(path, made.private_bytes(encoding, form, serialization.NoEncryption()), mode=0o600)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def secret() -> str:
    """A secret that nobody guesses."""
    return secrets.token_hex(32)
