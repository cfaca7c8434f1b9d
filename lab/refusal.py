"""A request or a task that Proxmox VE would refuse, in its words."""

from collections.abc import Mapping


class Refusal(Exception):
    """What the API answers with `status` and `message`; inside a task, the text is its exit status.

    `errors` maps parameters to what is wrong with each (PVE sends them with status 400 only).
    """

    def __init__(self, status: int, message: str, errors: Mapping[str, str] | None = None) -> None:
        details = "; ".join(f"{name}: {why.strip()}" for name, why in (errors or {}).items())
        super().__init__(f"{message} {details}".rstrip())
        self.status = status
        self.message = message
        self.errors = dict(errors) if errors else None


def invalid(errors: Mapping[str, str]) -> Refusal:
    """PVE's answer to parameters that do not hold: 400 and one message for each."""
    return Refusal(400, "Parameter verification failed.", errors)
