"""The public side: Access before the administration, then the tunnel and its name, then the connector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import requests

from environments.model import Environment
from provisioning.account import PROTECTED, Account, Application, Policy, Record, ServiceToken, Tunnel
from provisioning.action import ActionFailed
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.public import PublicHost
from provisioning.state import State
from provisioning.tunnel import Connector

CONNECTED_TIMEOUT_S, PUBLIC_TIMEOUT_S = 60, 120
CLOSING_RULE = ("", "http_status:404")


def ingress(environment: Environment) -> list[tuple[str, str]]:
    """The tunnel's rules: the public host leads to the VIP, everything else to nothing. Pure."""
    return [(environment.edge.public_host, f"http://{environment.wordpress.vip}"), CLOSING_RULE]


def people(environment: Environment) -> Policy:
    """The policy that lets people in, by their addresses and domains. Pure."""
    edge = environment.edge
    return Policy(
        f"{environment.tag} people",
        "allow",
        tuple({"email": {"email": email}} for email in edge.admin_emails)
        + tuple({"email_domain": {"domain": domain}} for domain in edge.admin_domains),
    )


def suite(environment: Environment, token: str) -> Policy:
    """The policy that lets this suite's own service token in. Pure."""
    return Policy(f"{environment.tag} suite", "non_identity", ({"service_token": {"token_id": token}},))


def claimed(environment: Environment, records: Sequence[Record], tunnels: Sequence[Tunnel]) -> Record | None:
    """The public host's record, where it is ours to set; raises ActionFailed where the host is somebody else's. Pure.

    It is ours when it leads to our tunnel, or to one that is no more: nobody else's site is behind that.
    """
    host = environment.edge.public_host
    by_target = {tunnel.target: tunnel for tunnel in tunnels}
    for record in records:
        if record.kind not in ("A", "AAAA", "CNAME"):
            continue
        owner = by_target.get(record.content)
        if record.kind == "CNAME" and owner is None and record.content.endswith(".cfargotunnel.com"):
            return record
        if owner is None or owner.name != environment.tag:
            holder = f"the tunnel {owner.name}" if owner else f"the record {record.kind} {record.content}"
            raise ActionFailed(
                f"{host} already belongs to {holder}; nothing was changed: "
                "choose another edge.public_host, or remove that record yourself"
            )
        return record
    return None


@dataclass(frozen=True)
class AccessDeclared:
    """Nobody reaches the administration without being let in; declared before the host has a name."""

    account: Account
    state: State
    name: str = "administration guarded"

    @property
    def _environment(self) -> Environment:
        return self.account.environment

    @property
    def _token_name(self) -> str:
        return f"{self._environment.tag} suite"

    @property
    def _wanted_providers(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Ways to log in by type: name and configuration."""
        google = self._environment.edge.google
        wanted: dict[str, tuple[str, dict[str, str]]] = {"onetimepin": ("One-time PIN", {})}
        if google:
            config = {"client_id": google.client_id, "client_secret": google.client_secret.reveal()}
            wanted["google"] = (f"{self._environment.tag} Google", config)
        return wanted

    def _providers(self) -> tuple[dict[str, str], list[str]]:
        """The ids of those ways to log in that are there, by type, and the types of those that are not as declared.

        One-time PINs are the account's, and of one kind; a Google of another name is somebody else's. Cloudflare never
        tells a client's secret: one that was changed alone is not seen.
        """
        account, there, behind = self.account, self.account.providers(), []
        found = {kind: id_ for kind, id_ in there.items() if kind == "onetimepin"}
        for kind, (name, config) in self._wanted_providers.items():
            own = account.google(name) if kind == "google" else None
            if own:
                found[kind] = own[0]
            if kind not in found or (own and own[1] != config["client_id"]):
                behind.append(kind)
        return found, behind

    def _application(self, policies: Sequence[str], providers: Sequence[str]) -> Application:
        edge = self._environment.edge
        uris = tuple(f"{edge.public_host}/{path}" for path in PROTECTED)
        name = f"{self._environment.tag} administration"
        return Application(name, uris, tuple(policies), tuple(providers), edge.session_duration)

    def pending(self) -> Sequence[str]:
        """A line for each thing that is not as declared."""
        account, (providers, behind) = self.account, self._providers()
        token = account.service_token(self._token_name)
        known = ServiceToken.kept(self.state.service_token)
        lines = [f"identity provider {kind}" for kind in behind]
        if token is None or known is None or known.client_id != token.client_id:
            lines.append(f"service token {self._token_name}")
        held = account.policies()
        wanted = [people(self._environment), suite(self._environment, token.id if token else "")]
        lines += [f"policy {p.name}" for p in wanted if p.name not in held or replace(held[p.name], id="") != p]
        application = self._application(
            [held[p.name].id for p in wanted if p.name in held],
            [providers[kind] for kind in self._wanted_providers if kind in providers],
        )
        found = account.application(application.name)
        if found is None or replace(found, id="") != application:
            lines.append(f"application {application.name} over {', '.join(application.uris)}")
        return lines

    def apply(self) -> None:
        """Declare it all; raises ActionFailed."""
        account, (providers, behind) = self.account, self._providers()
        for kind in behind:
            name, config = self._wanted_providers[kind]
            if kind in providers:
                account.set_provider(providers[kind], kind, name, config)
            else:
                providers[kind] = account.make_provider(kind, name, config)
        token, known = account.service_token(self._token_name), ServiceToken.kept(self.state.service_token)
        if token is None or known is None or known.client_id != token.client_id:
            token = account.make_service_token(self._token_name)
            token.keep(self.state.service_token)
        held = account.policies()
        ids = []
        for policy in (people(self._environment), suite(self._environment, token.id)):
            found = held.get(policy.name)
            same = found is not None and replace(found, id="") == policy
            ids.append(
                found.id if found and same else account.set_policy(replace(policy, id=found.id if found else ""))
            )
        application = self._application(ids, [providers[kind] for kind in self._wanted_providers])
        there = account.application(application.name)
        account.set_application(replace(application, id=there.id if there else ""))


@dataclass(frozen=True)
class TunnelDeclared:
    """A tunnel leads from the public host to the VIP, and from nowhere else to anything."""

    account: Account
    name: str = "tunnel declared"

    def pending(self) -> Sequence[str]:
        """A line for each thing that is not as declared; raises ActionFailed when the host is somebody else's."""
        account, environment = self.account, self.account.environment
        record = claimed(environment, account.records(), account.tunnels())
        tunnel = account.tunnel()
        lines = [] if tunnel else [f"tunnel {environment.tag}"]
        if tunnel is None or account.ingress(tunnel) != ingress(environment):
            lines += [f"{host or 'every other host'} leads to {service}" for host, service in ingress(environment)]
        if tunnel is None or record is None or (record.content, record.proxied) != (tunnel.target, True):
            lines.append(f"{environment.edge.public_host} is the tunnel's, proxied")
        return lines

    def apply(self) -> None:
        """Declare it; raises ActionFailed."""
        account, environment = self.account, self.account.environment
        record = claimed(environment, account.records(), account.tunnels())
        tunnel = account.tunnel() or account.make_tunnel()
        account.set_ingress(tunnel, ingress(environment))
        account.set_record(tunnel, record)


@dataclass(frozen=True)
class ConnectorRunning:
    """The connector serves the tunnel, and will after a reboot."""

    account: Account
    connector: Connector
    exist: bool
    name: str = "connector running"

    def pending(self) -> Sequence[str]:
        """A line for each thing that is not so."""
        tunnel = self.account.tunnel() if self.exist else None
        if tunnel is None:
            return ["give the connector its token, and start it"]
        lines = []
        if not self.connector.holds(self.account.token(tunnel)):
            lines.append("give the connector the tunnel's token")
        if not self.connector.running():
            lines.append("start the connector")
        if not lines and not tunnel.connected:
            lines.append("start the connector anew: no connector is connected to the tunnel")
        return lines

    def apply(self) -> None:
        """Start it, and wait until the edge has it; raises ActionFailed with the connector's last words."""
        tunnel = self.account.tunnel()
        if tunnel is None:
            raise ActionFailed("the tunnel was removed meanwhile; run the same command again")
        self.connector.start(self.account.token(tunnel))

        def connected() -> bool:
            found = self.account.tunnel()
            if found is None or not found.connected:
                raise NotYet("no connector is connected")
            return True

        try:
            poll("the connector is connected", connected, timeout_s=CONNECTED_TIMEOUT_S, interval_s=0.5)
        except DeadlineExceeded as error:
            raise ActionFailed(
                f"{error}; the machine must reach the edge",
                machine=self.connector.machine.name,
                command="cloudflared tunnel run",
                output=self.connector.journal(),
            ) from error


@dataclass(frozen=True)
class HostAnswers:
    """Visitors get the site at the public host."""

    public: PublicHost
    reachable: Callable[[], bool]
    name: str = "public host answers"

    @cached_property
    def _line(self) -> str:
        return f"wait for https://{self.public.name}/"

    def pending(self) -> Sequence[str]:
        """One line unless it answers."""
        if not self.reachable():
            return [self._line]
        try:
            return [] if self.public.get("/").status == requests.codes.ok else [self._line]
        except OSError:
            return [self._line]

    def apply(self) -> None:
        """Wait; raises ActionFailed with the last answer."""

        def answers() -> bool:
            try:
                status = self.public.get("/").status
            except OSError as error:
                raise NotYet(str(error)) from error
            if status != requests.codes.ok:
                raise NotYet(f"it answers {status}")
            return True

        try:
            poll(f"https://{self.public.name}/ answers", answers, timeout_s=PUBLIC_TIMEOUT_S, interval_s=1)
        except DeadlineExceeded as error:
            raise ActionFailed(str(error)) from error
