"""The FastAPI application: who may call, what a refusal looks like, and the calls by noun."""

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lab.api import access, cluster, node, qemu, storage
from lab.api.answers import not_implemented, refused
from lab.api.auth import Auth
from lab.api.calls import API
from lab.driver import DriverError
from lab.hypervisor import Hypervisor
from lab.refusal import Refusal

WORLD = {("POST", f"{API}/access/ticket")}


def create_app(hypervisor: Hypervisor, auth: Auth) -> FastAPI:
    """The Proxmox VE 9 API over `hypervisor`, for callers that `auth` knows."""

    def admit(request: Request) -> None:
        if (request.method, request.url.path) not in WORLD:
            request.state.user = auth.caller(request)
        name = request.path_params.get("node", hypervisor.node)
        if name not in (hypervisor.node, "localhost"):
            raise Refusal(
                500,
                f"hostname lookup '{name}' failed - failed to get address info for: {name}: Name or service not known",
            )

    app = FastAPI(title="haproof lab", dependencies=[Depends(admit)], openapi_url=None, redirect_slashes=False)

    async def on_refusal(_: Request, refusal: Exception) -> JSONResponse:
        if not isinstance(refusal, Refusal):
            raise refusal
        return refused(refusal)

    async def on_failure(_: Request, error: Exception) -> JSONResponse:
        return refused(Refusal(500, str(error)))

    async def on_unknown(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            raise error
        if error.status_code not in (404, 405):  # a body that cannot be read
            return refused(Refusal(error.status_code, str(error.detail)))
        try:
            auth.caller(request)  # PVE asks who calls before it looks for what
        except Refusal as refusal:
            return refused(refusal)
        return refused(not_implemented(request.method, request.url.path.removeprefix(API)))

    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(DriverError, on_failure)
    app.add_exception_handler(OSError, on_failure)
    app.add_exception_handler(HTTPException, on_unknown)
    access.add_calls(app, auth)
    cluster.add_calls(app, hypervisor)
    node.add_calls(app, hypervisor)
    storage.add_calls(app, hypervisor)
    qemu.add_calls(app, hypervisor)
    return app
