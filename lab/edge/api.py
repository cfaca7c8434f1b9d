"""Cloudflare's API, as far as a tunnel, its name and Access before it need it (see ../shared/contracts)."""

import base64
import hmac
import json
import uuid
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse

from lab.edge import API_PATH
from lab.edge.access import Logins
from lab.edge.mailbox import Mailbox
from lab.edge.store import Resource, Store, now, secret

# Error codes as the service gives them.
BAD_TOKEN, NO_ROUTE, EXISTS, NOT_FOUND, INVALID = 10000, 7003, 1013, 1003, 1001
RECORD_EXISTS = 81053
ACCESS, MAILBOX = "access", "mailbox"


class Failure(Exception):
    """An answer that is an error: status, code and message."""

    def __init__(self, status: int, code: int, message: str) -> None:
        self.status, self.code, self.message = status, code, message
        super().__init__(message)


def envelope(result: Any, **more: Any) -> dict[str, Any]:
    """What every answer looks like."""
    return {"success": True, "errors": [], "messages": [], "result": result, **more}


def create_api(
    store: Store,
    mailbox: Mailbox,
    logins: Logins,
    tokens: Callable[[], dict[str, frozenset[str]]],
    connections: Callable[[str], list[Resource]],
) -> FastAPI:
    """The API; `tokens` gives the scopes of every token that is known at the moment: of `tunnel dns access mailbox`.

    `connections` gives those of a tunnel's connectors that are there.
    """
    app = FastAPI(openapi_url=None)

    @app.exception_handler(Failure)
    async def failed(_: Request, error: Failure) -> JSONResponse:
        body = {
            "success": False,
            "errors": [{"code": error.code, "message": error.message}],
            "messages": [],
            "result": None,
        }
        return JSONResponse(body, status_code=error.status)

    def scoped(scope: str) -> Any:
        def check(authorization: Annotated[str, Header()] = "") -> None:
            given = authorization.removeprefix("Bearer ")
            known = next((s for token, s in tokens().items() if hmac.compare_digest(token, given)), None)
            if known is None:
                raise Failure(403, BAD_TOKEN, "Authentication error")
            if scope not in known:
                raise Failure(403, BAD_TOKEN, f"Authentication error: the token has no permission for {scope}")

        return Depends(check)

    app.include_router(tunnels(store, connections), prefix=API_PATH, dependencies=[scoped("tunnel")])
    app.include_router(records(store), prefix=API_PATH, dependencies=[scoped("dns")])
    app.include_router(access(store), prefix=API_PATH, dependencies=[scoped(ACCESS)])
    app.include_router(letters(mailbox, logins), dependencies=[scoped(MAILBOX)])
    return app


def listing(found: list[Resource], request: Request) -> dict[str, Any]:
    """One page of a list: all of it on the first, nothing on those behind it."""
    page, per_page = int(request.query_params.get("page", 1)), max(len(found), 20)
    info = {"page": page, "per_page": per_page, "count": len(found), "total_count": len(found), "total_pages": 1}
    return envelope(found if page == 1 else [], result_info=info)


def held(store: Store, kind: str, identifier: str) -> Resource:
    """The resource; raises Failure when there is none."""
    found = store.get(kind, identifier)
    if found is None:
        raise Failure(404, NOT_FOUND, f"no such {kind.removesuffix('s')}: {identifier}")
    return found


async def body_of(request: Request) -> Resource:
    """The request's JSON object; raises Failure."""
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise Failure(400, INVALID, "the body is no JSON") from error
    if not isinstance(body, dict):
        raise Failure(400, INVALID, "the body is no object")
    return body


def needed(body: Resource, *names: str) -> None:
    """Raises Failure for a member that is not there."""
    for name in names:
        if not body.get(name):
            raise Failure(400, INVALID, f"{name} is required")


def tunnels(store: Store, connections: Callable[[str], list[Resource]]) -> APIRouter:
    """Tunnels, what they lead to, and their tokens."""
    router = APIRouter(prefix="/accounts/{account}/cfd_tunnel")

    def shown(tunnel: Resource) -> Resource:
        live = connections(tunnel["id"])
        told = {key: value for key, value in tunnel.items() if key not in ("secret", "config")}
        return {**told, "connections": live, "status": "healthy" if live else "down"}

    @router.get("")
    async def every(request: Request) -> Any:
        name = request.query_params.get("name")
        found = [shown(t) for t in store.all("tunnels") if name in (None, t["name"])]
        return listing(found, request)

    @router.post("")
    async def make(account: str, request: Request) -> Any:
        body = await body_of(request)
        needed(body, "name")
        if any(tunnel["name"] == body["name"] for tunnel in store.all("tunnels")):
            raise Failure(409, EXISTS, "You already have a tunnel with this name")
        made = {
            "account_tag": account,
            "name": body["name"],
            "config_src": body.get("config_src", "local"),
            "remote_config": body.get("config_src") == "cloudflare",
            "tun_type": "cfd_tunnel",
            "deleted_at": None,
            "secret": secret(),
            "config": {"ingress": []},
        }
        return envelope(shown(store.add("tunnels", made)))

    @router.get("/{tunnel}")
    async def one(tunnel: str) -> Any:
        return envelope(shown(held(store, "tunnels", tunnel)))

    @router.delete("/{tunnel}")
    async def remove(tunnel: str) -> Any:
        held(store, "tunnels", tunnel)
        return envelope(shown(store.remove("tunnels", tunnel) or {}))

    @router.get("/{tunnel}/token")
    async def token(account: str, tunnel: str) -> Any:
        found = held(store, "tunnels", tunnel)
        told = json.dumps({"a": account, "t": tunnel, "s": found["secret"]}).encode()
        return envelope(base64.b64encode(told).decode())

    @router.patch("/{tunnel}")
    async def edit(tunnel: str, request: Request) -> Any:
        found, body = held(store, "tunnels", tunnel), await body_of(request)
        renewed = {"secret": body["tunnel_secret"]} if body.get("tunnel_secret") else {}
        return envelope(shown(store.put("tunnels", {**found, "name": body.get("name", found["name"]), **renewed})))

    @router.get("/{tunnel}/configurations")
    async def configuration(account: str, tunnel: str) -> Any:
        found = held(store, "tunnels", tunnel)
        return envelope({"account_id": account, "tunnel_id": tunnel, "config": found["config"], "version": 1})

    @router.put("/{tunnel}/configurations")
    async def configure(account: str, tunnel: str, request: Request) -> Any:
        found, body = held(store, "tunnels", tunnel), await body_of(request)
        ingress = (body.get("config") or {}).get("ingress") or []
        if not ingress or ingress[-1].get("hostname"):
            raise Failure(400, 1056, "Bad Configuration: The last ingress rule must match all URLs")
        store.put("tunnels", {**found, "config": body["config"]})
        return envelope({"account_id": account, "tunnel_id": tunnel, "config": body["config"], "version": 1})

    return router


def records(store: Store) -> APIRouter:
    """DNS records of zones."""
    router = APIRouter(prefix="/zones/{zone}/dns_records")

    @router.get("")
    async def every(zone: str, request: Request) -> Any:
        name = request.query_params.get("name", request.query_params.get("name.exact"))
        found = [r for r in store.all("records") if r["zone_id"] == zone and name in (None, r["name"])]
        return listing(found, request)

    async def described(zone: str, request: Request) -> Resource:
        body = await body_of(request)
        needed(body, "name", "type", "content")
        return {**body, "zone_id": zone, "ttl": body.get("ttl", 1), "proxied": bool(body.get("proxied"))}

    @router.post("")
    async def make(zone: str, request: Request) -> Any:
        record = await described(zone, request)
        if any(r["name"] == record["name"] for r in store.all("records")):
            raise Failure(400, RECORD_EXISTS, "An A, AAAA, or CNAME record with that host already exists.")
        added = {"created_on": now(), "modified_on": now(), "proxiable": True, "meta": {}, "settings": {}, "tags": []}
        return envelope(store.add("records", {"id": uuid.uuid4().hex, **added, **record}))

    @router.put("/{record}")
    async def replace(zone: str, record: str, request: Request) -> Any:
        found = held(store, "records", record)
        return envelope(store.put("records", {**found, **await described(zone, request), "modified_on": now()}))

    @router.delete("/{record}")
    async def remove(record: str) -> Any:
        held(store, "records", record)
        store.remove("records", record)
        return envelope({"id": record})

    return router


def access(store: Store) -> APIRouter:
    """Identity providers, policies, applications and service tokens."""
    router = APIRouter(prefix="/accounts/{account}/access")

    def collection(path: str, kind: str, required: tuple[str, ...], complete: Callable[[Resource], Resource]) -> None:
        @router.get(f"/{path}", name=f"list {path}")
        async def every(request: Request) -> Any:
            return listing([without_secret(found) for found in store.all(kind)], request)

        @router.post(f"/{path}", status_code=201, name=f"make {path}")
        async def make(request: Request) -> Any:
            body = await body_of(request)
            needed(body, *required)
            return envelope(store.add(kind, complete(body)))

        @router.get(f"/{path}/{{identifier}}", name=f"get {path}")
        async def one(identifier: str) -> Any:
            return envelope(without_secret(held(store, kind, identifier)))

        @router.put(f"/{path}/{{identifier}}", name=f"replace {path}")
        async def replace(identifier: str, request: Request) -> Any:
            found, body = held(store, kind, identifier), await body_of(request)
            needed(body, *required)
            return envelope(without_secret(store.put(kind, {**found, **body, "updated_at": now()})))

        @router.delete(f"/{path}/{{identifier}}", status_code=202, name=f"remove {path}")
        async def remove(identifier: str) -> Any:
            held(store, kind, identifier)
            store.remove(kind, identifier)
            return envelope({"id": identifier})

    def application(body: Resource) -> Resource:
        return {"aud": secret(), "session_duration": "24h", "app_launcher_visible": True, **body, "updated_at": now()}

    collection("identity_providers", "identity_providers", ("name", "type"), lambda body: {"config": {}, **body})
    collection("policies", "policies", ("name", "decision", "include"), lambda body: {**body, "updated_at": now()})
    collection("apps", "apps", ("type",), application)
    collection(
        "service_tokens",
        "service_tokens",
        ("name",),
        lambda body: {
            "duration": "8760h",
            **body,
            "client_id": f"{secret()[:32]}.access",
            "client_secret": secret(),
            "updated_at": now(),
        },
    )

    @router.post("/service_tokens/{identifier}/rotate")
    async def rotate(identifier: str) -> Any:
        found = held(store, "service_tokens", identifier)
        return envelope(store.put("service_tokens", {**found, "client_secret": secret(), "updated_at": now()}))

    return router


def without_secret(resource: Resource) -> Resource:
    """A resource as it is shown later: a service token's secret is told once, an identity provider's never."""
    shown = {key: value for key, value in resource.items() if key != "client_secret"}
    return {**shown, "config": without_secret(shown["config"])} if isinstance(shown.get("config"), dict) else shown


def letters(mailbox: Mailbox, logins: Logins) -> APIRouter:
    """No part of Cloudflare's: the mailbox of the people who log in, and a way to let what is in it grow old."""
    router = APIRouter(prefix="/mailbox")

    @router.get("/{address}")
    async def read(address: str) -> Any:
        return {"letters": mailbox.read(address)}

    @router.post("/{address}")
    async def age(address: str, older_s: Annotated[float, Body(ge=0, embed=True)]) -> Any:
        logins.age(address, older_s)
        return {"letters": mailbox.read(address)}

    return router
