"""Lies about the public side: who is let in, by which way, and what is told on it."""

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from environments.model import Machine, Role
from lab import edge
from lab.paths import Paths
from provisioning.account import Account, Application, Policy
from provisioning.action import ActionFailed
from provisioning.edge import CLOSING_RULE, CONNECTED_TIMEOUT_S, AccessDeclared, TunnelDeclared, ingress, people
from provisioning.poll import NotYet, poll
from provisioning.tunnel import UNIT
from steps.growth import free_address
from tests.processes import named
from tests.sabotage.layers.database import unit_disabled
from tests.sabotage.lie import Lie, Tell, on
from tests.sabotage.stage import ROOT, Stage

LAYER = "edge"
DOORS = (edge.PUBLIC_PORT, edge.API_PORT, edge.TUNNEL_PORT)
STRANGERS = "example.net"


def connector(stage: Stage) -> Machine:
    """The machine that dials out."""
    return stage.with_role(Role.TUNNEL)


def guarded(change: Callable[[Application], Application]) -> Tell:
    """The application over the administration is another one; put right by the build's own action."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        account = Account(stage.environment)
        (held,) = account.applications_over(stage.environment.edge.public_host)
        try:
            account.set_application(change(held))
            yield
        finally:
            account.set_application(held)

    return told


def admitting(change: Callable[[Policy], Policy]) -> Tell:
    """The policy for people is another one."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        account = Account(stage.environment)
        held = account.policies()[people(stage.environment).name]
        try:
            account.set_policy(change(held))
            yield
        finally:
            AccessDeclared(account, stage.session.state).apply()

    return told


def ruled(rules: Callable[[Sequence[tuple[str, str]]], Sequence[tuple[str, str]]]) -> Tell:
    """The tunnel leads elsewhere."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        account = Account(stage.environment)
        tunnel = account.tunnel()
        assert tunnel is not None
        try:
            account.set_ingress(tunnel, rules(ingress(stage.environment)))
            yield
        finally:
            TunnelDeclared(account).apply()

    return told


def also(*rules: dict[str, dict[str, str]]) -> Callable[[Policy], Policy]:
    """The policy lets more people in."""
    return lambda policy: replace(policy, include=(*policy.include, *rules))


def lenient(way: str) -> Tell:
    """Another edge takes the place of the lab's, with the same account, and is lenient in one way."""

    @contextmanager
    def told(stage: Stage) -> Iterator[None]:
        paths, where = Paths.default(), stage.environment.edge.resolve
        with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
            shutil.copytree(paths.state / "edge", Path(folder) / "edge")
            for name in ("cloudflare-token", "mailbox-token"):
                shutil.copy(paths.state / name, folder)
            listening = [held.enter_context(socket.create_server((str(where), 0))) for _ in DOORS]
            descriptors = [one.fileno() for one in listening]
            command = [sys.executable, "-m", "tests.sabotage.false.edge", way, "serve", "--state", folder, "--fds"]
            process = held.enter_context(
                subprocess.Popen([*command, *map(str, descriptors)], cwd=ROOT, pass_fds=descriptors)
            )
            held.callback(dialled_in, stage)
            held.callback(process.kill)
            held.callback(subprocess.run, ["nft", "delete", "table", "ip", "sabotage"], check=False)
            rules = [
                f"ip daddr {where} tcp dport {door} dnat to {where}:{one.getsockname()[1]}"
                for door, one in zip(DOORS, listening, strict=True)
            ]
            chains = "".join(
                f"chain {hook} {{ type nat hook {hook} priority -110; {'; '.join(rules)}; }}\n"
                for hook in ("prerouting", "output")
            )
            subprocess.run(["nft", "-f", "-"], input=f"table ip sabotage {{ {chains} }}", text=True, check=True)
            dialled_in(stage)
            yield

    return told


def dialled_in(stage: Stage) -> None:
    """The connector dials anew, and the edge that is there now has it; raises DeadlineExceeded."""
    stage.run(connector(stage), f"systemctl restart {UNIT}")

    def connected() -> bool:
        try:
            tunnel = Account(stage.environment).tunnel()
        except ActionFailed as error:
            raise NotYet(error.cause) from error
        return bool(tunnel and tunnel.connected)

    poll("the connector dials in", connected, timeout_s=CONNECTED_TIMEOUT_S, interval_s=0.5)


@contextmanager
def way_round(stage: Stage) -> Iterator[None]:
    """Where visitors are, there is a second cable, into the network of the site."""
    network = stage.environment.networks["cluster"]
    visitors = next(named("tinyproxy"), None)
    if visitors is None:
        raise ActionFailed("nobody is where visitors are: no tinyproxy runs here")
    address = free_address(stage.environment, "cluster")
    inside = ["nsenter", "-t", str(visitors), "-n", "ip"]
    try:
        for words in (
            ["ip", "link", "add", "sabotage0", "type", "veth", "peer", "name", "sabotage1", "netns", str(visitors)],
            ["ip", "link", "set", "sabotage0", "master", network.bridge, "up"],
            [*inside, "addr", "add", f"{address}/{network.cidr.prefixlen}", "dev", "sabotage1"],
            [*inside, "link", "set", "sabotage1", "up"],
        ):
            subprocess.run(words, check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "del", "sabotage0"], check=False)


LOGIN = ("An authorised address gets in by PIN",)
LIES = (
    Lie(
        "administration-unguarded",
        LAYER,
        ("P10",),
        "expected the login of Access, found",
        guarded(lambda app: replace(app, uris=(app.uris[0].partition("/")[0] + "/elsewhere",))),
        scenarios=("No spelling of the administration opens without a login",),
    ),
    Lie(
        "login-page-unguarded",
        LAYER,
        ("P10",),
        "wp-login.php.*: expected the login of Access, found 200",
        guarded(lambda app: replace(app, uris=app.uris[:1])),
        scenarios=("No spelling of the administration opens without a login",),
    ),
    Lie(
        "policy-for-everyone",
        LAYER,
        ("P10",),
        "expected the declared addresses only, found",
        admitting(also({"everyone": {}})),
        scenarios=("Only the declared addresses are admitted, and no longer than declared",),
    ),
    Lie(
        "pin-for-a-stranger",
        LAYER,
        ("P10",),
        "a PIN came to an unauthorised address",
        admitting(also({"email_domain": {"domain": STRANGERS}})),
        scenarios=("An unauthorised address gets no PIN and cannot tell",),
    ),
    Lie(
        "nobody-admitted",
        LAYER,
        ("P10",),
        "no PIN came to an authorised address",
        admitting(lambda policy: replace(policy, include=({"email": {"email": f"somebody@{STRANGERS}"}},))),
        scenarios=LOGIN,
    ),
    Lie(
        "any-pin-is-right",
        LAYER,
        ("P10",),
        "a wrong PIN was accepted",
        lenient("any-pin"),
        scenarios=("Wrong and used PINs are refused",),
    ),
    Lie(
        "old-pins-are-right",
        LAYER,
        ("P10",),
        "a PIN that has expired was accepted",
        lenient("old-pin"),
        scenarios=("An expired PIN is refused",),
    ),
    Lie(
        "any-session-is-genuine",
        LAYER,
        ("P10",),
        "unsigned: expected the login of Access",
        lenient("any-session"),
        scenarios=("Forged sessions are refused",),
    ),
    Lie(
        "any-secret-opens",
        LAYER,
        ("P10",),
        "expected a wrong secret to be refused",
        lenient("any-secret"),
        scenarios=("Programs show a token of their own",),
    ),
    Lie(
        "strangers-are-told",
        LAYER,
        ("P10",),
        "the page tells whether the address is authorised",
        lenient("telling"),
        scenarios=("An unauthorised address gets no PIN and cannot tell",),
    ),
    Lie(
        "a-way-round-the-tunnel",
        LAYER,
        ("P9",),
        "expected no way to port",
        way_round,
        scenarios=("No way leads round the tunnel",),
        may=("P8",),
    ),
    Lie(
        "session-of-a-year",
        LAYER,
        ("P10",),
        "expected 24h, found 8760h",
        guarded(lambda app: replace(app, session_duration="8760h")),
        scenarios=("Only the declared addresses are admitted, and no longer than declared",),
    ),
    Lie(
        "service-token-not-admitted",
        LAYER,
        ("P10",),
        "expected the site's login, found 403",
        guarded(lambda app: replace(app, policies=app.policies[:1])),
        scenarios=("Programs show a token of their own",),
    ),
    Lie(
        "origin-listening-in-public",
        LAYER,
        ("P9",),
        "listens on tcp .*:8080",
        on(
            connector,
            "systemd-run -q --collect --unit=sabotage python3 -m http.server 8080 --directory /run/lock",
            "systemctl stop sabotage 2>/dev/null || true",
        ),
        scenarios=("The connector dials out and takes no calls",),
    ),
    Lie(
        "closing-rule-missing",
        LAYER,
        ("P9",),
        "expected the rules",
        ruled(lambda rules: [rules[0], ("", rules[0][1])]),
        scenarios=("The tunnel leads to the site and to nothing else",),
    ),
    Lie(
        "public-host-leads-to-nothing",
        LAYER,
        ("P9",),
        "it answers 404|answers 503",
        ruled(lambda rules: [(rules[0][0], "http_status:503"), CLOSING_RULE]),
        scenarios=("The public host serves the site without a login",),
    ),
    Lie(
        "connector-not-at-boot",
        LAYER,
        ("P12",),
        f"expected {UNIT} active and enabled, found active and disabled",
        unit_disabled(Role.TUNNEL, UNIT),
    ),
    Lie(
        "connector-stays-away-after-a-reboot",
        LAYER,
        ("P9",),
        "1033|it answers 530",
        unit_disabled(Role.TUNNEL, UNIT),
        scenarios=(
            "The connector's machine is rebooted",
            "Losing the connector takes the public host away and leaves the inside",
        ),
        may=("P12",),
    ),
)
