"""/access: log-in and what the caller may do."""

from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import Field

from lab.api.answers import Data
from lab.api.auth import PRIVILEGES, Auth
from lab.api.calls import API, Caller
from lab.api.parameters import Boolean, Parameters, Reads
from lab.refusal import Refusal


class LogIn(Parameters):
    """POST /access/ticket."""

    username: Annotated[str, Field(max_length=64)]
    password: str
    realm: Annotated[str, Field(max_length=32)] | None = None
    new_format: Boolean | None = Field(default=None, alias="new-format")


class Permissions(Parameters):
    """GET /access/permissions."""

    path: str | None = None
    userid: str | None = None


def add_calls(app: FastAPI, auth: Auth) -> None:
    """Add these calls to `app`."""

    @app.post(f"{API}/access/ticket")
    def log_in(asked: Annotated[LogIn, Depends(Reads(LogIn))]) -> Data:
        username = asked.username if asked.realm is None else f"{asked.username}@{asked.realm}"
        ticket = auth.log_in(username, asked.password)
        return Data({"username": ticket.username, "ticket": ticket.ticket, "CSRFPreventionToken": ticket.csrf})

    @app.get(f"{API}/access/permissions")
    def permissions(asked: Annotated[Permissions, Depends(Reads(Permissions))], caller: Caller) -> Data:
        who = asked.userid or caller
        if who != "root@pam" and who not in auth.tokens:
            raise Refusal(500, f"no such user ('{who}')")
        return Data({asked.path or "/": dict.fromkeys(PRIVILEGES, 1)})
