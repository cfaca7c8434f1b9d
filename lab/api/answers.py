"""Answers in PVE's shape: `{"data": …}`, or a status, a message and a message for each wrong parameter."""

from collections.abc import Mapping

from fastapi import status
from fastapi.responses import JSONResponse

from lab.refusal import Refusal

REASON_HEADER = "x-lab-reason"
REASON_LENGTH = 200


class Data(JSONResponse):
    """`{"data": content}`, and whatever stands beside it."""

    def __init__(self, content: object = None, **beside: object) -> None:
        super().__init__({"data": content, **beside})


def refused(refusal: Refusal) -> JSONResponse:
    """The answer to a refused request; `lab.api.server` moves the header into the status line."""
    body: dict[str, object] = {"data": None, "message": f"{refusal.message}\n"}
    if refusal.errors:
        body["errors"] = refusal.errors
    return JSONResponse(body, refusal.status, {REASON_HEADER: _reason(refusal.message)})


def not_implemented(method: str, path: str) -> Refusal:
    """PVE's refusal of a call it does not know."""
    return Refusal(status.HTTP_501_NOT_IMPLEMENTED, f"Method '{method} {path}' not implemented")


def integers(values: Mapping[str, object]) -> dict[str, object]:
    """PVE writes booleans as 1 and 0, and leaves out what is not known."""
    return {key: int(value) if isinstance(value, bool) else value for key, value in values.items() if value is not None}


def _reason(message: str) -> str:
    """One line that a header can carry."""
    line = next(iter(message.splitlines()), "")[:REASON_LENGTH]
    return "".join(character if " " <= character <= "~" else "?" for character in line)
