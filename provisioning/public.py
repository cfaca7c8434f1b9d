"""The public side as a visitor meets it: by name, with the address and trust that the environment gives."""

import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from environments.model import Edge

PORT = 443
TIMEOUT_S = 30


def connect(host: str, port: int, proxy: str | None, timeout_s: float) -> socket.socket:
    """A TCP connection to `host`, from where the HTTP proxy stands if there is one; raises OSError."""
    if proxy is None:
        return socket.create_connection((host, port), timeout_s)
    place = urlsplit(proxy)
    through = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout_s)
    through.set_tunnel(host, port)
    through.connect()
    return through.sock


@dataclass(frozen=True)
class Answer:
    """An answer: its headers by lower-case name, those of one name in their order."""

    status: int
    headers: Mapping[str, tuple[str, ...]]
    body: bytes

    def header(self, name: str) -> str:
        """A header's first value; empty where there is none."""
        return self.headers.get(name.lower(), ("",))[0]

    @property
    def text(self) -> str:
        """The body as text, whatever it says it is."""
        return self.body.decode(errors="replace")


@dataclass(frozen=True)
class PublicHost:
    """A host of the public side, over TLS; `address`, `ca` and `proxy` as curl's --resolve, --cacert and --proxy."""

    name: str
    address: str | None = None
    ca: str | None = None
    port: int = PORT
    proxy: str | None = None

    @classmethod
    def of(cls, edge: Edge) -> "PublicHost":
        """The environment's public host."""
        address = str(edge.resolve) if edge.resolve else None
        return cls(edge.public_host, address, edge.ca, proxy=str(edge.proxy) if edge.proxy else None)

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def get(self, target: str, headers: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> Answer:
        """GET exactly `target`: no library tidies its spelling, and no redirect is followed.

        Raises OSError when there is no answer, or one that is no HTTP.
        """
        connection = http.client.HTTPConnection(self.name, self.port, timeout=timeout_s)
        try:
            plain = connect(self.address or self.name, self.port, self.proxy, timeout_s)
            connection.sock = self._trusted.wrap_socket(plain, server_hostname=self.name)
            connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": self.name, "Connection": "close", **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders()
            reply = connection.getresponse()
            told: dict[str, tuple[str, ...]] = {}
            for name, value in reply.getheaders():
                told[name.lower()] = (*told.get(name.lower(), ()), value)
            return Answer(reply.status, told, reply.read())
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP answer from {self.name}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()

    def session(self) -> requests.Session:
        """A browser's manners: cookies, redirects, forms. Other hosts of the public side are found in the same way."""
        session = requests.Session()
        session.trust_env = False
        if self.ca:
            session.verify = self.ca
        if self.proxy:
            session.proxies = {"https": self.proxy}
        if self.address:
            session.mount("https://", Resolved(self.address, self.port))
        return session


class Resolved(HTTPAdapter):
    """Every host is at one address; names stay what certificates and cookies are about."""

    def __init__(self, address: str, port: int) -> None:
        self._place = {"host": address, "port": port}
        super().__init__()

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """The pool of the address, by the host's own name."""
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        names = {"server_hostname": host["host"], "assert_hostname": host["host"]}
        return {**host, **self._place}, {**pool, **names}

    def add_headers(self, request: Any, **_: Any) -> None:
        """The name that is asked for."""
        request.headers["Host"] = urlsplit(request.url).netloc
