"""What every module of calls shares: paths as FastAPI writes them, and who calls."""

from typing import Annotated

from fastapi import Depends, Request

API = "/api2/json"
CLUSTER = f"{API}/cluster"
NODE = f"{API}/nodes/{{node}}"
STORE = f"{NODE}/storage/{{storage}}"
VM = f"{NODE}/qemu/{{vmid}}"
SNAPSHOT = f"{VM}/snapshot/{{snapname}}"


def _caller(request: Request) -> str:
    return str(request.state.user)


Caller = Annotated[str, Depends(_caller)]
