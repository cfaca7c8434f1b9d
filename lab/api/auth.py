"""Who calls: API tokens, and tickets as the web interface uses them (PVE::AccessControl)."""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request

from lab.refusal import Refusal

COOKIE = "PVEAuthCookie"
CSRF_HEADER = "CSRFPreventionToken"
TOKEN_SCHEME = "PVEAPIToken="
TICKET_LIFE_S = 7200
UNSIGNED = ("GET", "HEAD")
FAILED = "authentication failure"
# What a full administrator may do in PVE 9.
PRIVILEGES = [
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Group.Allocate",
    "Mapping.Audit",
    "Mapping.Modify",
    "Mapping.Use",
    "Permissions.Modify",
    "Pool.Allocate",
    "Pool.Audit",
    "Realm.Allocate",
    "Realm.AllocateUser",
    "SDN.Allocate",
    "SDN.Audit",
    "SDN.Use",
    "Sys.AccessNetwork",
    "Sys.Audit",
    "Sys.Console",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "Sys.Syslog",
    "User.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Console",
    "VM.GuestAgent.Audit",
    "VM.GuestAgent.FileRead",
    "VM.GuestAgent.FileSystemMgmt",
    "VM.GuestAgent.FileWrite",
    "VM.GuestAgent.Unrestricted",
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Replicate",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
]


@dataclass(frozen=True)
class Ticket:
    """What a log-in answers."""

    username: str
    ticket: str
    csrf: str


@dataclass(frozen=True)
class Auth:
    """The credentials that open the API; everyone is a full administrator.

    `tokens` maps `user@realm!name` to the secret. `password` is root@pam's; None: nobody logs in by password.
    Tickets are signed with a key of this process: they end with the daemon.
    """

    tokens: Mapping[str, str] = field(repr=False)
    password: str | None = field(default=None, repr=False)
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def caller(self, request: Request) -> str:
        """The user or token behind a request; raises PVE's 401."""
        authorization = request.headers.get("authorization", "")
        if authorization.startswith(TOKEN_SCHEME):
            return self._token(authorization.removeprefix(TOKEN_SCHEME))
        ticket = request.cookies.get(COOKIE)
        if ticket is None:
            raise Refusal(401, "No ticket")
        user = self._user_of(ticket)
        if user is None:
            raise Refusal(401, "permission denied - invalid PVE ticket")
        if request.method not in UNSIGNED and not self._csrf_holds(request.headers.get(CSRF_HEADER, ""), user):
            raise Refusal(401, "Permission denied - invalid csrf token")
        return user

    def log_in(self, username: str, password: str) -> Ticket:
        """Trade a password, or a ticket that still holds, for a ticket; raises PVE's 401."""
        user = username if "@" in username else f"{username}@pam"
        knows = self.password is not None and hmac.compare_digest(password.encode(), self.password.encode())
        if not (user == "root@pam" and (knows or self._user_of(password) == user)):
            raise Refusal(401, FAILED)
        stamp = f"{int(time.time()):08X}"
        return Ticket(
            user,
            f"PVE:{user}:{stamp}::{self._sign('ticket', user, stamp)}",
            f"{stamp}:{self._sign('csrf', user, stamp)}",
        )

    def _token(self, text: str) -> str:
        token, _, secret = text.partition("=")
        # A token that does not exist costs the same comparison as one that does.
        expected = self.tokens.get(token, "")
        if not hmac.compare_digest(secret.encode(), expected.encode()) or not expected:
            raise Refusal(401, "invalid token value!" if expected else f"no such token '{token[:80]}'")
        return token

    def _user_of(self, ticket: str) -> str | None:
        head, _, signature = ticket.partition("::")
        kind, _, rest = head.partition(":")
        user, _, stamp = rest.rpartition(":")
        holds = hmac.compare_digest(signature.encode(), self._sign("ticket", user, stamp).encode())
        return user if kind == "PVE" and holds and _fresh(stamp) else None

    def _csrf_holds(self, text: str, user: str) -> bool:
        stamp, _, signature = text.partition(":")
        return hmac.compare_digest(signature.encode(), self._sign("csrf", user, stamp).encode()) and _fresh(stamp)

    def _sign(self, purpose: str, user: str, stamp: str) -> str:
        digest = hmac.digest(self._key, f"{purpose}\0{user}\0{stamp}".encode(), hashlib.sha256)
        return base64.b64encode(digest).decode().rstrip("=")


def _fresh(stamp: str) -> bool:
    """Whether a signed stamp (seconds since 1970, hexadecimal) is not older than a ticket lives."""
    return time.time() - int(stamp, 16) < TICKET_LIFE_S
