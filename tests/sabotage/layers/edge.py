"""Lies about the public side: who is let in, by which way, and what is told on it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from environments.model import Machine, Role
from provisioning.account import Account, Application, Policy
from provisioning.edge import CLOSING_RULE, AccessDeclared, TunnelDeclared, ingress, people
from provisioning.tunnel import UNIT
from tests.sabotage.layers.database import unit_disabled
from tests.sabotage.lie import Lie, Tell, on
from tests.sabotage.stage import Stage

LAYER = "edge"
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
    ),
)
