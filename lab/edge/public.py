"""The edge as visitors meet it: TLS for public hosts, Access before what it guards, the tunnel behind."""

import secrets
from collections.abc import AsyncIterator
from html import escape
from typing import Any
from urllib.parse import quote, urlencode

import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from lab.edge import TEAM_DOMAIN
from lab.edge.access import (
    Logins,
    Signer,
    admits_email,
    admits_service,
    duration_s,
    guardian,
    service_token,
)
from lab.edge.frames import passed_on
from lab.edge.mailbox import Mailbox
from lab.edge.store import Resource, Store
from lab.edge.tunnel import NoConnector, Tunnels

SESSION, APP_SESSION = "CF_Authorization", "CF_AppSession"
ASSERTION = "Cf-Access-Jwt-Assertion"
CLIENT_ID, CLIENT_SECRET = "cf-access-client-id", "cf-access-client-secret"
PRIVATE = {"Cache-Control": "private, max-age=0, no-store, no-cache, must-revalidate"}
LOGIN, AUTHORIZED = "/cdn-cgi/access/login/", "/cdn-cgi/access/authorized"
CERTS, IDENTITY, LOGOUT = "/cdn-cgi/access/certs", "/cdn-cgi/access/get-identity", "/cdn-cgi/access/logout"
SEND, VERIFY = "/cdn-cgi/access/onetimepin/send", "/cdn-cgi/access/onetimepin/verify"
# What visitors may not say of themselves, and what says too much of where an answer comes from.
FORGEABLE = frozenset(
    {"cf-connecting-ip", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "host", "content-length"}
)
TELLTALE = frozenset({"server", "x-powered-by", "via"})
EVERY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def page(title: str, body: str, status: int = 200) -> HTMLResponse:
    """A page of the edge's own."""
    text = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><h1>{title}</h1>{body}</html>"
    return HTMLResponse(text, status, headers={**PRIVATE, "Server": "cloudflare"})


class Edge:
    """Answers for every host: those that tunnels serve, and the login pages of teams."""

    def __init__(self, store: Store, tunnels: Tunnels, mailbox: Mailbox, logins: Logins) -> None:
        self._store, self._tunnels, self._mailbox, self._logins = store, tunnels, mailbox, logins

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=[Route("/{path:path}", self._answer, methods=EVERY_METHOD)])

    async def _answer(self, request: Request) -> Response:
        host = (request.headers.get("host") or "").partition(":")[0].lower()
        if host.endswith(f".{TEAM_DOMAIN}"):
            return await self._team(host, request)
        return await self._site(host, request)

    # -- a team's own host: logging in

    def _signer(self, team: str) -> Signer:
        return Signer(self._store.key, f"https://{team}")

    def _policies(self) -> dict[str, Resource]:
        return {policy["id"]: policy for policy in self._store.all("policies")}

    async def _team(self, team: str, request: Request) -> Response:
        path = request.url.path
        if path == CERTS:
            return JSONResponse(self._signer(team).jwks())
        if path.startswith(LOGIN) and request.method == "GET":
            return self._ask_for_address(path.removeprefix(LOGIN), request)
        if path == SEND and request.method == "POST":
            return self._send_pin(await request.form())
        if path == VERIFY and request.method == "POST":
            return self._verify_pin(await request.form())
        return page("Not found", "", 404)

    def _ask_for_address(self, host: str, request: Request) -> Response:
        app = next((a for a in self._store.all("apps") if a["aud"] == request.query_params.get("kid")), None)
        if app is None:
            return page("Unable to find your Access application!", "", 404)
        if not any(p["type"] == "onetimepin" for p in self._store.all("identity_providers")):
            return page("No way to log in is set up", "", 403)
        hidden = {"kid": app["aud"], "host": host, "redirect_url": request.query_params.get("redirect_url", "/")}
        return page("Sign in", form(SEND, hidden, "email", "email", "Send me a code"))

    def _send_pin(self, given: Any) -> Response:
        app = next((a for a in self._store.all("apps") if a["aud"] == given.get("kid")), None)
        if app is None:
            return page("Unable to find your Access application!", "", 404)
        email = str(given.get("email", "")).strip()
        admitted = admits_email(app, self._policies(), email)
        path = str(given.get("redirect_url", "/"))
        word, pin = self._logins.begin(app["aud"], str(given.get("host", "")), path, email, admitted=admitted)
        if pin:
            self._mailbox.send(email, f"Your code is {pin}")
        return self._ask_for_pin(word)

    def _ask_for_pin(self, word: str, remark: str = "", status: int = 200) -> Response:
        """The same for everybody: whether an address is known here is nobody's business."""
        told = "<p>A code has been sent, if this address may enter. It is good for ten minutes.</p>"
        return page("Enter the code", remark + told + form(VERIFY, {"nonce": word}, "code", "text", "Sign in"), status)

    def _verify_pin(self, given: Any) -> Response:
        word = str(given.get("nonce", ""))
        begun = self._logins.begun.get(word)
        proof = self._logins.prove(word, str(given.get("code", "")))
        if proof is None or begun is None:
            return self._ask_for_pin(word, "<p>That code is not valid.</p>", 401)
        query = urlencode({"nonce": proof, "redirect_url": begun.path})
        return RedirectResponse(f"https://{begun.host}{AUTHORIZED}?{query}", 302, headers=PRIVATE)

    # -- a public host

    async def _site(self, host: str, request: Request) -> Response:
        record = next((r for r in self._store.all("records") if r["name"] == host and r["proxied"]), None)
        tunnel = self._store.get("tunnels", record["content"].partition(".")[0]) if record else None
        if tunnel is None:
            return page("Error 1016: Origin DNS error", "", 530)
        raw = (request.scope.get("raw_path") or request.url.path.encode()).decode("latin-1").partition("?")[0]
        app = guardian(self._store.all("apps"), host, raw)
        if raw == AUTHORIZED:
            return self._authorize(host, request)
        if raw == IDENTITY:
            return self._identity(host, request)
        if raw == LOGOUT:
            left = page("You are logged out", "")
            left.delete_cookie(SESSION)
            return left
        claims: dict[str, Any] | None = None
        if app is not None:
            answer = self._admit(app, host, raw, request)
            if isinstance(answer, Response):
                return answer
            claims = answer
        assertion = self._signer(team_of(app)).sign(app, claims) if app and claims else None
        return await self._forward(tunnel, host, raw, request, assertion)

    def _admit(self, app: Resource, host: str, path: str, request: Request) -> dict[str, Any] | Response:
        """Who the visitor is, or what they are told instead of being let in."""
        signer = self._signer(team_of(app))
        if CLIENT_ID in request.headers or CLIENT_SECRET in request.headers:
            pair = request.headers.get(CLIENT_ID, ""), request.headers.get(CLIENT_SECRET, "")
            token = service_token(self._store.all("service_tokens"), *pair)
            if token is None:
                return page("Invalid service token", "", 401)
            if not admits_service(app, self._policies(), token):
                return page("Forbidden", "<p>This service token may not enter here.</p>", 403)
            return {"common_name": token["client_id"], "sub": ""}
        if presented := request.cookies.get(SESSION):
            claims = signer.read(presented, app)
            # A policy may have changed since: who is no longer listed is no longer let in.
            if claims and admits_email(app, self._policies(), str(claims.get("email", ""))):
                return {name: claims[name] for name in ("email", "sub", "identity_nonce") if name in claims}
        target = path + (f"?{request.url.query}" if request.url.query else "")
        meta = jwt.encode({"hostname": host, "kid": app["aud"], "type": "meta"}, signer.key, "RS256")
        query = urlencode({"kid": app["aud"], "redirect_url": target, "meta": meta}, quote_via=quote)
        told = RedirectResponse(f"{signer.issuer}{LOGIN}{host}?{query}", 302, headers=PRIVATE)
        told.headers["WWW-Authenticate"] = f'Cloudflare-Access resource_metadata="https://{host}/"'
        told.set_cookie(APP_SESSION, secrets.token_hex(8), secure=True, httponly=True, path="/", max_age=86400)
        return told

    def _authorize(self, host: str, request: Request) -> Response:
        proven = self._logins.redeem(request.query_params.get("nonce", ""), host)
        app = next((a for a in self._store.all("apps") if proven and a["aud"] == proven.aud), None)
        if proven is None or app is None:
            return page("Forbidden", "<p>This login is not valid, or was used before.</p>", 403)
        identity = {"email": proven.email, "sub": secrets.token_hex(16), "identity_nonce": secrets.token_urlsafe(12)}
        # Only a path of this host: a login leads nobody elsewhere.
        where = "/" + proven.path.lstrip("/\\")
        told = RedirectResponse(where, 302, headers=PRIVATE)
        token = self._signer(team_of(app)).sign(app, identity)
        life_s = duration_s(app.get("session_duration") or "24h")
        told.set_cookie(SESSION, token, secure=True, httponly=True, samesite="lax", path="/", max_age=life_s)
        return told

    def _identity(self, host: str, request: Request) -> Response:
        for app in self._store.all("apps"):
            claims = self._signer(team_of(app)).read(request.cookies.get(SESSION, ""), app)
            if claims:
                return JSONResponse({"email": claims.get("email"), "idp": {"type": "onetimepin"}, "iat": claims["iat"]})
        return JSONResponse({"err": "no app token set"}, 400)

    async def _forward(
        self, tunnel: Resource, host: str, raw: str, request: Request, assertion: str | None
    ) -> Response:
        rules = tunnel["config"].get("ingress") or []
        service = next((rule["service"] for rule in rules if rule.get("hostname") in (None, "", host)), "")
        if not service.startswith("http://"):
            status = int(service.removeprefix("http_status:")) if service.startswith("http_status:") else 503
            return page(f"Error {status}", "", status)
        visitor = request.client.host if request.client else ""
        own = [
            ("Host", host),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-For", visitor),
            ("CF-Connecting-IP", visitor),
        ]
        given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        withheld = FORGEABLE | {ASSERTION.lower(), CLIENT_ID, CLIENT_SECRET}
        headers = [(name, value) for name, value in passed_on(given) if name.lower() not in withheld]
        if assertion:
            own.append((ASSERTION, assertion))
        target = raw + (f"?{request.url.query}" if request.url.query else "")
        head = {"method": request.method, "path": target, "headers": own + headers, "service": service}
        try:
            answer, body = await self._tunnels.request(tunnel["id"], head, request.stream())
        except NoConnector:
            return page("Error 1033: Cloudflare Tunnel error", "<p>The host is not reachable now.</p>", 530)
        except TimeoutError:
            return page("Error 524: A timeout occurred", "", 524)
        reply = StreamingResponse(whole(body), answer["status"])
        reply.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in answer["headers"]
            if name.lower() not in TELLTALE
        ] + [(b"server", b"cloudflare")]
        return reply


async def whole(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """An answer's bytes; one that breaks off breaks the visitor's connection too, which is how they know."""
    async for chunk in body:
        yield chunk


def team_of(app: Resource | None) -> str:
    """The host of an application's team."""
    return f"{(app or {}).get('team', 'haproof')}.{TEAM_DOMAIN}"


def form(action: str, hidden: dict[str, str], name: str, kind: str, label: str) -> str:
    """An HTML form with one field."""
    fields = "".join(f'<input type=hidden name="{escape(k)}" value="{escape(v)}">' for k, v in hidden.items())
    field = f'<label>{escape(name)} <input type="{kind}" name="{name}" required></label>'
    return f'<form method=post action="{action}">{fields}{field}<button>{escape(label)}</button></form>'
