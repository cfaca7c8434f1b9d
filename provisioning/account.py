"""The Cloudflare account of one environment: what is declared there, read and written by Cloudflare's own library."""

import json
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import cloudflare
from cloudflare import Cloudflare, DefaultHttpxClient

from environments.model import Environment
from environments.secret import SecretMissing
from provisioning.action import ActionFailed
from provisioning.poll import DeadlineExceeded, NotYet, poll

TIMEOUT_S = 30
RETRIES = 4  # of 429, 5xx and cut connections, as the library does them: with growing pauses, or as Retry-After says
# The administration's doors. /wp-admin covers what is below it, admin-ajax.php too: a theme whose public pages call
# that one needs an exception of its own.
PROTECTED = ("wp-admin", "wp-login.php")
PERMISSION_DENIED = (401, 403)
TOO_MANY_S, TOO_MANY_PAUSE_S = 120, 5  # for creations; Cloudflare counts requests by five minutes
Made = TypeVar("Made")


class Permission(Enum):
    """What the API token must be allowed, as the dashboard names it."""

    TUNNEL = "Account · Cloudflare Tunnel · Edit"
    DNS = "Zone · DNS · Edit"
    ACCESS = "Account · Access: Apps and Policies, Service Tokens, Identity Providers · Edit"


@dataclass(frozen=True)
class Tunnel:
    """A tunnel of the account; `connected` says whether a connector is there."""

    id: str
    name: str
    connected: bool

    @property
    def target(self) -> str:
        """What a public host's CNAME points at."""
        return f"{self.id}.cfargotunnel.com"


@dataclass(frozen=True)
class Record:
    """A DNS record of the public host."""

    id: str
    kind: str
    content: str
    proxied: bool


@dataclass(frozen=True)
class ServiceToken:
    """What a program shows instead of logging in. `secret` is told once, when the token is made."""

    id: str
    client_id: str
    client_secret: str = field(default="", repr=False)

    @classmethod
    def kept(cls, path: Path) -> "ServiceToken | None":
        """What an earlier run kept, if it did."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, path: Path) -> None:
        """For later runs of this user, and for nobody else."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file)

    @property
    def headers(self) -> dict[str, str]:
        """What a program shows with each request."""
        return {"CF-Access-Client-Id": self.client_id, "CF-Access-Client-Secret": self.client_secret}


@dataclass(frozen=True)
class Policy:
    """Who is let in: `decision`, and the rules of which one must fit."""

    name: str
    decision: str
    include: tuple[dict[str, Any], ...]
    id: str = ""


@dataclass(frozen=True)
class Application:
    """What is guarded, by which policies in their order, and for how long a login lasts."""

    name: str
    uris: tuple[str, ...]
    policies: tuple[str, ...]
    providers: tuple[str, ...]
    session_duration: str
    id: str = ""


class Account:
    """One environment's part of an account. Every method raises ActionFailed, naming the permission that it needs.

    What is read or replaced is asked for again when the API is away, what is made is not: whether a creation that was
    cut off came about is seen by the next run, which looks first.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.edge = environment.edge
        self._id = self.edge.account_id

    @cached_property
    def _client(self) -> Cloudflare:
        trusted = ssl.create_default_context(cafile=self.edge.ca)
        return Cloudflare(
            api_token=self.edge.api_token.reveal(),
            base_url=str(self.edge.api_url).rstrip("/") if self.edge.api_url else None,
            max_retries=RETRIES,
            timeout=TIMEOUT_S,
            http_client=DefaultHttpxClient(verify=trusted),
        )

    @contextmanager
    def _asking(self, doing: str, permission: Permission) -> Iterator[None]:
        try:
            yield
        except cloudflare.APIStatusError as error:
            hint = ""
            if error.status_code in PERMISSION_DENIED:
                hint = (
                    f"; give the token of edge.api_token the permission “{permission.value}”, or write a new one there "
                    "where it has run out"
                )
            raise ActionFailed(
                f"Cloudflare refuses to {doing}: {error.status_code} {_told(error)}{hint}",
                command=f"{error.request.method} {error.request.url.path}",
            ) from error
        except cloudflare.APIConnectionError as error:
            cause = error.__cause__ or error
            raise ActionFailed(
                f"Cloudflare's API cannot be reached to {doing}: {str(cause) or type(cause).__name__}; "
                "check this machine's way out, and edge.api_url where there is one",
                command=f"{error.request.method} {error.request.url.path}",
            ) from error
        except (OSError, SecretMissing) as error:
            raise ActionFailed(f"edge.ca or edge.api_token cannot be used to {doing}: {error}") from error
        # The library reads an answer of another shape as far as it goes: what is missing shows where it is used.
        except (cloudflare.CloudflareError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ActionFailed(
                f"Cloudflare's API answers in another way than it should to {doing} ({type(error).__name__}: {error}); "
                "check edge.api_url, and what stands between it and this machine"
            ) from error

    def _make(self, make: Callable[[Cloudflare], Made]) -> Made:
        """Make something, once; too many requests (429) made nothing, and are made again later."""
        client = self._client.with_options(max_retries=0)

        def attempt() -> tuple[Made]:
            try:
                return (make(client),)
            except cloudflare.RateLimitError as error:
                raise NotYet(_told(error)) from error

        try:
            (made,) = poll("too many requests", attempt, timeout_s=TOO_MANY_S, interval_s=TOO_MANY_PAUSE_S)
        except DeadlineExceeded as error:
            raise ActionFailed(f"Cloudflare has too many requests of this account: {error.last_state}") from error
        return made

    # -- the tunnel

    def tunnels(self) -> list[Tunnel]:
        """The account's tunnels."""
        with self._asking("list tunnels", Permission.TUNNEL):
            found = self._client.zero_trust.tunnels.cloudflared.list(account_id=self._id, is_deleted=False)
            return [Tunnel(_id_of(t), str(t.name), bool(t.connections)) for t in found]

    def tunnel(self) -> Tunnel | None:
        """The tunnel with this environment's name."""
        return next((found for found in self.tunnels() if found.name == self.environment.tag), None)

    def make_tunnel(self) -> Tunnel:
        """A tunnel with this environment's name, configured at Cloudflare."""
        with self._asking("make a tunnel", Permission.TUNNEL):
            made = self._make(
                lambda client: client.zero_trust.tunnels.cloudflared.create(
                    account_id=self._id, name=self.environment.tag, config_src="cloudflare"
                )
            )
            return Tunnel(_id_of(made), self.environment.tag, connected=False)

    def token(self, tunnel: Tunnel) -> str:
        """What a connector needs to serve the tunnel: a secret."""
        with self._asking("read the tunnel's token", Permission.TUNNEL):
            told = self._client.zero_trust.tunnels.cloudflared.token.get(tunnel.id, account_id=self._id)
            if not isinstance(told, str) or not told:
                raise ValueError("the token is no text")
            return told

    def ingress(self, tunnel: Tunnel) -> list[tuple[str, str]]:
        """Host and service of each of the tunnel's rules; the closing one's host is empty."""
        with self._asking("read the tunnel's rules", Permission.TUNNEL):
            found = self._client.zero_trust.tunnels.cloudflared.configurations.get(tunnel.id, account_id=self._id)
            rules = (found.config.ingress if found and found.config else None) or []
            return [(rule.hostname or "", rule.service) for rule in rules]

    def set_ingress(self, tunnel: Tunnel, rules: Sequence[tuple[str, str]]) -> None:
        """Replace the tunnel's rules."""
        with self._asking("set the tunnel's rules", Permission.TUNNEL):
            self._client.zero_trust.tunnels.cloudflared.configurations.update(
                tunnel.id,
                account_id=self._id,
                config={"ingress": [{"hostname": host, "service": service} for host, service in rules]},
            )

    # -- the name

    def records(self) -> list[Record]:
        """Every DNS record of the public host."""
        with self._asking("list DNS records", Permission.DNS):
            found = self._client.dns.records.list(zone_id=self.edge.zone_id, name={"exact": self.edge.public_host})
            return [Record(_id_of(r), str(r.type), str(r.content), bool(r.proxied)) for r in found]

    def set_record(self, tunnel: Tunnel, held: Record | None) -> None:
        """Point the public host at the tunnel, in place of `held` where there is one."""
        record: dict[str, Any] = {
            "zone_id": self.edge.zone_id,
            "type": "CNAME",
            "name": self.edge.public_host,
            "content": tunnel.target,
            "proxied": True,
            "ttl": 1,
            "comment": self.environment.tag,
        }
        with self._asking("publish the host", Permission.DNS):
            if held:
                self._client.dns.records.update(held.id, **record)
            else:
                self._make(lambda client: client.dns.records.create(**record))

    # -- Access

    def google(self, name: str) -> tuple[str, str] | None:
        """Ids of the way to log in by Google called `name`, and of its OAuth client, whose secret is never told."""
        with self._asking("list identity providers", Permission.ACCESS):
            for found in self._client.zero_trust.identity_providers.list(account_id=self._id):
                if (found.type, found.name) == ("google", name):
                    config: Any = found.to_dict().get("config") or {}
                    return str(found.id), str(config.get("client_id", ""))
        return None

    def set_provider(self, id_: str, kind: str, name: str, config: dict[str, str]) -> None:
        """Replace a way to log in."""
        described: dict[str, Any] = {"type": kind, "name": name, "config": config}
        with self._asking(f"set the identity provider {kind}", Permission.ACCESS):
            self._client.zero_trust.identity_providers.update(id_, account_id=self._id, **described)

    def providers(self) -> dict[str, str]:
        """The ids of ways to log in, by type: `onetimepin`, `google`."""
        with self._asking("list identity providers", Permission.ACCESS):
            found = self._client.zero_trust.identity_providers.list(account_id=self._id)
            return {str(provider.type): _id_of(provider) for provider in found}

    def make_provider(self, kind: str, name: str, config: dict[str, str]) -> str:
        """A way to log in; gives its id."""
        described: dict[str, Any] = {"type": kind, "name": name, "config": config}
        with self._asking(f"make the identity provider {kind}", Permission.ACCESS):
            made = self._make(
                lambda client: client.zero_trust.identity_providers.create(account_id=self._id, **described)
            )
            return _id_of(made)

    def policies(self) -> dict[str, Policy]:
        """The account's reusable policies by name."""
        with self._asking("list policies", Permission.ACCESS):
            found = self._client.zero_trust.access.policies.list(account_id=self._id)
            return {
                str(p.name): Policy(
                    str(p.name), str(p.decision), tuple(rule.to_dict() for rule in p.include or []), _id_of(p)
                )
                for p in found
            }

    def set_policy(self, policy: Policy) -> str:
        """Make a policy, or replace the one of its id; gives the id."""
        described: dict[str, Any] = {
            "account_id": self._id,
            "name": policy.name,
            "decision": policy.decision,
            "include": list(policy.include),
        }
        with self._asking(f"set the policy {policy.name}", Permission.ACCESS):
            if policy.id:
                self._client.zero_trust.access.policies.update(policy.id, **described)
                return policy.id
            return _id_of(self._make(lambda client: client.zero_trust.access.policies.create(**described)))

    def application(self, name: str) -> Application | None:
        """The application called `name`."""
        with self._asking("list applications", Permission.ACCESS):
            for found in self._client.zero_trust.access.applications.list(account_id=self._id):
                if (told := described_application(found.to_dict())).name == name:
                    return told
        return None

    def applications_over(self, host: str) -> list[Application]:
        """Every application that guards something of `host`, whoever made it."""
        with self._asking("list applications", Permission.ACCESS):
            found = [
                described_application(a.to_dict())
                for a in self._client.zero_trust.access.applications.list(account_id=self._id)
            ]
            return [one for one in found if any(uri.partition("/")[0] == host for uri in one.uris)]

    def set_application(self, application: Application) -> None:
        """Make an application, or replace the one of its id."""
        described: dict[str, Any] = {
            "account_id": self._id,
            "type": "self_hosted",
            "name": application.name,
            "domain": application.uris[0],
            "destinations": [{"type": "public", "uri": uri} for uri in application.uris],
            "policies": [{"id": id_, "precedence": n} for n, id_ in enumerate(application.policies, 1)],
            "allowed_idps": list(application.providers),
            "session_duration": application.session_duration,
            "app_launcher_visible": False,
            "http_only_cookie_attribute": True,
        }
        with self._asking(f"set the application {application.name}", Permission.ACCESS):
            if application.id:
                self._client.zero_trust.access.applications.update(application.id, **described)
            else:
                self._make(lambda client: client.zero_trust.access.applications.create(**described))

    def service_token(self, name: str) -> ServiceToken | None:
        """The service token called `name`, without its secret."""
        with self._asking("list service tokens", Permission.ACCESS):
            for found in self._client.zero_trust.access.service_tokens.list(account_id=self._id):
                if found.name == name:
                    return ServiceToken(_id_of(found), str(found.client_id))
        return None

    def make_service_token(self, name: str) -> ServiceToken:
        """A service token with its secret; one of that name, whose secret nobody knows any more, gets a new one."""
        held = self.service_token(name)
        with self._asking(f"make the service token {name}", Permission.ACCESS):
            made: Any
            if held:
                made = self._client.zero_trust.access.service_tokens.rotate(held.id, account_id=self._id)
            else:
                made = self._make(
                    lambda client: client.zero_trust.access.service_tokens.create(account_id=self._id, name=name)
                )
            return ServiceToken(_id_of(made), str(made.client_id), str(made.client_secret))


def _told(error: cloudflare.APIStatusError) -> str:
    """What an error says of itself, as Cloudflare has it, or as HTTP has."""
    errors = error.errors if isinstance(error.errors, list) else []
    told = [str(one.message) for one in errors if getattr(one, "message", None)]
    return "; ".join(told) or error.response.reason_phrase


def _id_of(made: Any) -> str:
    """The id that was told of something; raises ValueError where there is none."""
    if not getattr(made, "id", None):
        raise ValueError("something has no id")
    return str(made.id)


def described_application(told: dict[str, Any]) -> Application:
    """An application as the API tells it. Pure."""
    destinations = told.get("destinations") or [{"uri": told.get("domain", "")}]
    policies = sorted(told.get("policies") or [], key=lambda p: p.get("precedence") or 0)
    return Application(
        str(told.get("name", "")),
        tuple(d["uri"] for d in destinations if d.get("uri")),
        tuple(str(p["id"]) for p in policies),
        tuple(told.get("allowed_idps") or ()),
        str(told.get("session_duration", "")),
        str(told["id"]),
    )
