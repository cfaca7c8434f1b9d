"""WordPress over HTTP, as visitors and editors use it; knows nothing of what the site runs on."""

import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from bs4 import BeautifulSoup
from requests.adapters import BaseAdapter

TIMEOUT_S = 30.0
REST = "/index.php?rest_route="  # answers whatever the site's permalinks are


class Refused(Exception):
    """The site answered, and not as asked: what was asked, the status, and what the page says."""

    def __init__(self, asked: str, reply: requests.Response) -> None:
        self.status = reply.status_code
        super().__init__(f"{asked}: status {reply.status_code}, {said(reply)}")


def said(reply: requests.Response) -> str:
    """What an answer says, in a line: a JSON message, or the text of a page. Pure."""
    if "json" in reply.headers.get("Content-Type", ""):
        document = reply.json()
        return str(document.get("message", document) if isinstance(document, dict) else document)[:300]
    words = BeautifulSoup(reply.text, "html.parser").get_text(" ", strip=True)
    return words[:300] or "an empty page"


@dataclass(frozen=True)
class Post:
    """A published post: its id, its title, and its path on the site."""

    id: int
    title: str
    path: str


@dataclass(frozen=True)
class Upload:
    """A file of the site's library: its id and its path on the site."""

    id: int
    path: str


def path_of(url: str) -> str:
    """The path and query of a URL of the site, whichever of its names that begins with. Pure."""
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


class Visitor:
    """Somebody who calls the site at `origin`, as `http://172.31.0.100`; keeps cookies, so one person each.

    `adapter` carries the requests where they should go another way than to that address.
    """

    def __init__(self, origin: str, *, adapter: BaseAdapter | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.origin = origin.rstrip("/")
        self.http = requests.Session()
        self.http.trust_env = False  # a proxy of the runner's would see another site
        self.timeout_s = timeout_s
        if adapter:
            self.http.mount(self.origin, adapter)

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """The answer to one request, redirects followed; raises requests.RequestException."""
        return self.http.request(method, self.origin + path, timeout=self.timeout_s, **options)

    def page(self, path: str = "/") -> requests.Response:
        """The answer at `path`; raises Refused unless it is 200."""
        reply = self.call("GET", path)
        if reply.status_code != requests.codes.ok:
            raise Refused(f"GET {path}", reply)
        return reply

    def reads(self, path: str) -> str:
        """The text of the page at `path`; raises as `page`."""
        return BeautifulSoup(self.page(path).text, "html.parser").get_text(" ", strip=True)


class Editor(Visitor):
    """A visitor who can log in, and then write."""

    _nonce = ""

    def log_in(self, user: str, password: str) -> None:
        """Log in by the site's own form; raises Refused."""
        self.page("/wp-login.php")  # sets the cookie without which the form turns everybody away
        form = {"log": user, "pwd": password, "testcookie": "1", "redirect_to": f"{self.origin}/wp-admin/profile.php"}
        reply = self.call("POST", "/wp-login.php", data=form)
        if not self.logged_in():
            raise Refused(f"logging in as {user}", reply)
        self._nonce = self.page("/wp-admin/admin-ajax.php?action=rest-nonce").text.strip()

    def logged_in(self) -> bool:
        """Whether the session is valid where these requests go: the panel opens and sends nobody to the form."""
        reply = self.call("GET", "/wp-admin/profile.php", allow_redirects=False)
        return reply.status_code == requests.codes.ok

    def take_session(self, other: "Editor") -> None:
        """Go on with the session that `other` began."""
        self.http.cookies.update(other.http.cookies)
        self._nonce = other._nonce

    def rest(self, method: str, route: str, **options: Any) -> Any:
        """What the REST API answers; raises Refused when it does not do as asked."""
        headers = {"X-WP-Nonce": self._nonce, **options.pop("headers", {})}
        reply = self.call(method, REST + route, headers=headers, **options)
        if not reply.ok:
            raise Refused(f"{method} {route}", reply)
        return reply.json()

    def publish(self, title: str, content: str) -> Post:
        """A new post that everybody can read; raises Refused."""
        made = self.rest("POST", "/wp/v2/posts", json={"title": title, "content": content, "status": "publish"})
        return Post(int(made["id"]), title, path_of(made["link"]))

    def withdraw(self, post: Post) -> None:
        """Delete a post for good; raises Refused."""
        self.rest("DELETE", f"/wp/v2/posts/{post.id}", params={"force": "true"})

    def upload(self, content: bytes, media_type: str = "image/png") -> Upload:
        """Put a file into the library, under a name of its own; raises Refused."""
        name = f"haproof-{secrets.token_hex(4)}.{media_type.rpartition('/')[2]}"
        headers = {"Content-Type": media_type, "Content-Disposition": f'attachment; filename="{name}"'}
        made = self.rest("POST", "/wp/v2/media", data=content, headers=headers)
        return Upload(int(made["id"]), path_of(made["source_url"]))

    def remove(self, upload: Upload) -> None:
        """Delete a file of the library for good; raises Refused."""
        self.rest("DELETE", f"/wp/v2/media/{upload.id}", params={"force": "true"})
