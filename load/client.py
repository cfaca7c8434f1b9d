"""A visitor's HTTP client: that of Locust's FastHttpUser, without what FastHttpUser does around every request.

On one core that was more than the request itself: a URL parsed anew, three sets of headers, an event that nobody hears.
Only the generator imports this: it belongs to gevent's world.
"""

import select
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http.cookiejar import CookieJar
from urllib.parse import urlsplit

from gevent.monkey import get_original
from gevent.socket import socket
from geventhttpclient import HTTPClient
from geventhttpclient.header import Headers
from geventhttpclient.useragent import CompatRequest, CompatResponse
from requests.utils import requote_uri

from load.stamp import Stamped

ENCODINGS = {"Accept-Encoding": "gzip, deflate, br"}
unpatched_poll = get_original("select", "poll")
Heads = dict[tuple[str, str], str]  # of requests that say nothing but these, method and path
quoted = lru_cache(maxsize=1024)(requote_uri)  # the same paths are asked for again and again


@dataclass(frozen=True)
class Answer:
    """An answer, read to its end: its status, its content decoded, where it leads, and when it had arrived.

    `arrived_s` is by `time.monotonic()`.
    """

    status: int
    content: bytes
    location: str
    arrived_s: float


def is_idle(kept: socket) -> bool:
    """Whether a kept connection can be used once more: neither ended nor written to by the site meanwhile.

    The library asks by gevent's select, which lets everybody else go first, and knows no file above 1023.
    """
    if kept.fileno() < 0:
        return False
    poll = unpatched_poll()
    poll.register(kept.fileno(), select.POLLIN)
    return not poll.poll(0)


def once(build: Callable[..., str], heads: Heads) -> Callable[..., str]:
    """As `build`, which writes a request's head; one that says nothing but method and path is taken from `heads`."""

    def built(method: str, path: str, body: object, headers: object, chunked: bool) -> str:
        if body or headers or chunked:
            return build(method, path, body, headers, chunked)
        if (method, path) not in heads:
            heads[method, path] = build(method, path)
        return heads[method, path]

    return built


class Client:
    """Sends one request after another to one site, over one connection where the site keeps it; follows no redirect."""

    def __init__(self, site: str, timeout_s: float, trusted: ssl.SSLContext, heads: Heads) -> None:
        """`site` is a URL's scheme, host and port; `timeout_s` holds for connecting and for each silence.

        `heads` is shared by all clients of the site: most visitors ask for what somebody asked for before.
        """
        self._site = site
        parts = urlsplit(site)
        secured = parts.scheme == "https"
        assert parts.hostname is not None
        self._http = HTTPClient(
            parts.hostname,
            parts.port,
            headers=ENCODINGS,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
            ssl=secured,
            ssl_context_factory=(lambda **_: trusted) if secured else None,
        )
        self._http._connection_pool._is_socket_alive = is_idle  # type: ignore[method-assign, assignment]
        # It tries so often and once more, silently: a request that was lost would pass for one that was slow.
        self._http._connection_pool.size = -1
        self._http._build_request = once(self._http._build_request, heads)  # type: ignore[method-assign]
        self._line: Stamped | None = None
        self._http._connection_pool._create_tcp_socket = self._connected  # type: ignore[method-assign, assignment]
        self._jar = CookieJar()
        self._has_cookies = False  # to look into the jar takes longer

    def request(self, method: str, path: str, body: bytes | str, headers: Mapping[str, str]) -> Answer:
        """The answer, whatever its status; raises OSError, HTTPParseError or zlib.error where none comes whole.

        It is sent once. A connection that the site has ended meanwhile is replaced before.
        """
        sent, sent_s = Headers(headers), time.monotonic()
        if self._has_cookies:
            self._jar.add_cookie_header(CompatRequest(f"{self._site}{path}", method, headers=sent))
        found = CompatResponse(self._http.request(method, quoted(path), body, sent))
        content = found.content
        # Of two clocks, one may be set meanwhile: nothing was answered before it was asked.
        assert self._line is not None
        arrived_s = max(sent_s, self._line.arrived_s or time.monotonic())
        if "set-cookie" in found.headers:
            asked = CompatRequest(f"{self._site}{path}", method, headers=sent)
            self._jar.extract_cookies(found, asked)  # type: ignore[arg-type]
            self._has_cookies = True
        location = found.headers.get("location", "")
        return Answer(found.status_code, content, location if isinstance(location, str) else location[0], arrived_s)

    def _connected(self, *kind: int) -> Stamped:
        self._line = Stamped(*kind)
        return self._line

    def cookies(self) -> dict[str, str]:
        """What the site has set."""
        return {cookie.name: cookie.value or "" for cookie in self._jar}

    def forget(self) -> None:
        """All cookies: the next visitor has none."""
        if self._has_cookies:
            self._jar.clear()
            self._has_cookies = False

    def close(self) -> None:
        """The connection with it."""
        self._http.close()
