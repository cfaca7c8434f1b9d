"""Access: which application guards a path, who is let in, and the tokens and PINs that say so. Decisions only."""

import base64
import hmac
import posixpath
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from lab.edge.store import Resource

ALGORITHM = "RS256"
PIN_LIFE_S, PIN_ATTEMPTS = 600, 3
DECODED_AT_MOST = 4  # how often a path may be percent-encoded and still be found out


def plain(path: str) -> str:
    """A path as the most lenient of servers might take it: decoded to the end, slashes and dots resolved, lower case.

    Pure. Too much is guarded rather than too little: a spelling that no origin understands is guarded as well.
    """
    path = path.partition("?")[0].partition("#")[0]
    for _ in range(DECODED_AT_MOST):
        path = unquote(path)
    path = re.sub(r";[^/]*", "", path.replace("\\", "/").replace("\0", ""))
    path = "/".join(word.strip(" ") for word in path.split("/"))
    path = posixpath.normpath(re.sub(r"/+", "/", f"/{path}")).lower()
    # Some servers take no notice of dots at a name's end; a name of dots alone is then none.
    return "/" + "/".join(word for word in (w.rstrip(" .") for w in path.split("/")) if word)


def covers(guarded: str, path: str) -> bool:
    """Whether a destination's path covers a request's; `/x/*` covers what is below /x, and /x covers both. Pure."""
    if guarded.endswith("/*"):
        return path.startswith(plain(guarded[:-2]).rstrip("/") + "/")
    own = plain(guarded).rstrip("/")
    # A script's path may go on behind its name, and is the script's all the same.
    return path == own or path.startswith(f"{own}/")


def destinations(app: Resource) -> list[tuple[str, str]]:
    """The (host, path) pairs that an application guards. Pure."""
    uris = [d["uri"] for d in app.get("destinations") or [] if d.get("type", "public") == "public" and d.get("uri")]
    parts = [uri.partition("/") for uri in uris or [app.get("domain") or ""]]
    return [(host.lower(), f"/{path}") for host, _, path in parts]


def guardian(apps: Sequence[Resource], host: str, path: str) -> Resource | None:
    """The application whose destination is the most specific one over a request, if any. Pure."""
    asked = plain(path)
    found = [
        (len(plain(guarded)), app)
        for app in apps
        for name, guarded in destinations(app)
        if name == host.lower() and (guarded == "/" or covers(guarded, asked))
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def policies_of(app: Resource, policies: Mapping[str, Resource]) -> list[Resource]:
    """An application's policies in order, those that are shared looked up. Pure."""
    return [policies.get(p["id"], p) if isinstance(p, dict) else policies.get(p, {}) for p in app.get("policies") or []]


def admits_email(app: Resource, policies: Mapping[str, Resource], email: str) -> bool:
    """Whether a policy of the application lets an address in. Pure."""
    address = email.strip().lower()
    for policy in policies_of(app, policies):
        if policy.get("decision") not in ("allow", "deny"):
            continue
        for rule in policy.get("include") or []:
            named = (rule.get("email") or {}).get("email", "").lower()
            domain = (rule.get("email_domain") or {}).get("domain", "").lower()
            if "everyone" in rule or address == named or (domain and address.endswith(f"@{domain}")):
                return bool(policy["decision"] == "allow")
    return False


def admits_service(app: Resource, policies: Mapping[str, Resource], token: Resource) -> bool:
    """Whether a policy of the application lets a service token in. Pure."""
    return any(
        "any_valid_service_token" in rule or (rule.get("service_token") or {}).get("token_id") == token["id"]
        for policy in policies_of(app, policies)
        if policy.get("decision") == "non_identity"
        for rule in policy.get("include") or []
    )


def service_token(tokens: Sequence[Resource], client_id: str, client_secret: str) -> Resource | None:
    """The service token of a pair of headers, if it is one. Pure."""
    for token in tokens:
        if token["client_id"] == client_id and hmac.compare_digest(token["client_secret"], client_secret):
            return token
    return None


def duration_s(text: str) -> int:
    """Seconds in a duration as `24h` or `30m`; raises ValueError. Pure."""
    match = re.fullmatch(r"(\d+)(s|m|h)", text)
    if not match:
        raise ValueError(f"expected a duration such as 24h, found {text!r}")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


@dataclass(frozen=True)
class Signer:
    """Makes and reads the tokens of one team, `issuer`."""

    key: rsa.RSAPrivateKey
    issuer: str

    @property
    def key_id(self) -> str:
        """The name of the key: what its numbers are hashed to would do as well."""
        return f"{self.key.public_key().public_numbers().n & 0xFFFFFFFFFFFFFFFF:016x}"

    def jwks(self) -> dict[str, Any]:
        """The public key as it is published (RFC 7517)."""
        numbers = self.key.public_key().public_numbers()

        def spelled(value: int) -> str:
            return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()

        own = {"kid": self.key_id, "kty": "RSA", "alg": ALGORITHM, "use": "sig"}
        return {"keys": [{**own, "n": spelled(numbers.n), "e": spelled(numbers.e)}]}

    def sign(self, app: Resource, claims: Mapping[str, Any]) -> str:
        """A token for an application, which lasts as long as its sessions."""
        now_s = int(time.time())
        life_s = duration_s(app.get("session_duration") or "24h")
        own = {
            "aud": [app["aud"]],
            "iss": self.issuer,
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + life_s,
            "type": "app",
        }
        return jwt.encode({**own, **claims}, self.key, ALGORITHM, headers={"kid": self.key_id})

    def read(self, token: str, app: Resource) -> dict[str, Any] | None:
        """The claims of a token that is this team's, this application's and in its time; else nothing."""
        try:
            return dict(
                jwt.decode(
                    token,
                    self.key.public_key(),
                    [ALGORITHM],
                    audience=app["aud"],
                    issuer=self.issuer,
                    options={"require": ["exp", "iat", "iss", "aud"]},
                )
            )
        except jwt.InvalidTokenError:
            return None


@dataclass
class Challenge:
    """A login that was begun: for whom and where to, and the PIN, if one was sent."""

    aud: str
    host: str
    path: str
    email: str
    pin: str | None
    until_s: float
    attempts: int = 0


@dataclass
class Logins:
    """Logins that were begun and those that were proven, each by a word that nobody guesses."""

    begun: dict[str, Challenge] = field(default_factory=dict)
    proven: dict[str, Challenge] = field(default_factory=dict)

    def begin(self, aud: str, host: str, path: str, email: str, *, admitted: bool) -> tuple[str, str | None]:
        """A login's word and its PIN; somebody who is not admitted gets a word like everybody, and no PIN."""
        word, pin = secrets.token_urlsafe(24), f"{secrets.randbelow(10**6):06d}" if admitted else None
        self.begun[word] = Challenge(aud, host, path, email, pin, time.monotonic() + PIN_LIFE_S)
        return word, pin

    def age(self, email: str, older_s: float) -> None:
        """Make the PINs that were sent to an address so many seconds older."""
        for challenge in self.begun.values():
            if challenge.email.lower() == email.lower():
                challenge.until_s -= older_s

    def prove(self, word: str, pin: str) -> str | None:
        """Another word, once, for the right PIN in its time; a PIN that was used or guessed at too often is void."""
        found = self.begun.get(word)
        if found is None or time.monotonic() > found.until_s:
            return None
        found.attempts += 1
        if found.attempts > PIN_ATTEMPTS or found.pin is None or not hmac.compare_digest(found.pin, pin.strip()):
            return None
        del self.begun[word]
        proof = secrets.token_urlsafe(24)
        self.proven[proof] = found
        return proof

    def redeem(self, proof: str, host: str) -> Challenge | None:
        """The login that a word proves at a host; a word is good for one time."""
        found = self.proven.get(proof)
        if found is None or found.host != host:
            return None
        return self.proven.pop(proof)
