"""An edge that is lenient in one WAY: `python -m tests.sabotage.false.edge WAY serve …`, else as `lab.edge` is."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jwt

from lab.edge import __main__ as honest
from lab.edge import public
from lab.edge.access import Logins, Signer, admits_email
from lab.edge.store import Resource


def any_pin() -> None:
    """Whoever has asked for a PIN gets in with any, as often as they like."""

    def prove(logins: Logins, word: str, pin: str) -> str | None:
        found = logins.begun.get(word)
        if found is not None:
            logins.proven[f"{word}{pin}"] = found
        return f"{word}{pin}" if found else None

    setattr(Logins, "prove", prove)  # noqa: B010 - mypy forbids what this does


def old_pin() -> None:
    """A PIN does not grow old."""
    setattr(Logins, "age", lambda *_: None)  # noqa: B010


def any_session() -> None:
    """Sessions are read, and their signature is not looked at."""

    def read(_: Signer, token: str, app: Resource) -> dict[str, Any] | None:
        try:
            claims = dict(jwt.decode(token, options={"verify_signature": False}))
        except jwt.InvalidTokenError:
            return None
        return {"email": "editor@example.org", **claims}

    setattr(Signer, "read", read)  # noqa: B010


def any_secret() -> None:
    """A service token's id is enough."""

    def token(tokens: Sequence[Resource], client_id: str, _: str) -> Resource | None:
        return next((token for token in tokens if token["client_id"] == client_id), None)

    setattr(public, "service_token", token)  # noqa: B010


def telling() -> None:
    """Who is not authorised is told so."""
    send = public.Edge._send_pin

    def told(edge: public.Edge, given: Any) -> Any:
        reply = send(edge, given)
        known = admits_email(edge._store.all("apps")[0], edge._policies(), str(given.get("email", "")))
        return reply if known else public.page("Enter the code", "<p>This address may not enter.</p>", 403)

    setattr(public.Edge, "_send_pin", told)  # noqa: B010


WAYS: Mapping[str, Callable[[], None]] = {
    "any-pin": any_pin,
    "old-pin": old_pin,
    "any-session": any_session,
    "any-secret": any_secret,
    "telling": telling,
}

if __name__ == "__main__":
    WAYS[sys.argv.pop(1)]()
    honest.main()
