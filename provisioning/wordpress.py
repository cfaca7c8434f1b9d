"""WordPress over HTTP: its installer, its login, its REST interface; what an editor's browser would send."""

import re
import zlib
from dataclasses import dataclass, field
from typing import Any

import requests
from bs4 import BeautifulSoup

TIMEOUT_S = 30
INSTALL_TIMEOUT_S = 240  # twelve tables in a cluster of two machines
NO_DATABASE = "Error establishing a database connection"


class WordPressError(Exception):
    """The site did not do what was asked: which request, and what it answered."""


@dataclass(frozen=True)
class Post:
    """A post as the REST interface tells of it."""

    id: int
    title: str
    link: str


@dataclass(frozen=True)
class Media:
    """An uploaded file: its path below the site's root."""

    id: int
    path: str


@dataclass
class WordPress:
    """A visitor of one WordPress, with a browser's memory of cookies.

    `url` is where connections go, `host` the name that is asked for there (that of `url` when empty): a replica is
    asked for the site by the site's name.
    """

    url: str
    host: str = ""
    session: requests.Session = field(default_factory=requests.Session)
    _nonce: str = field(default="", init=False, repr=False)

    def request(self, method: str, path: str, *, timeout_s: float = TIMEOUT_S, **arguments: Any) -> requests.Response:
        """One request, redirects not followed; raises requests.RequestException."""
        # A connection that is kept may be closed by the server just when the next request is on its way.
        headers = {"Connection": "close", **arguments.pop("headers", {}), **({"Host": self.host} if self.host else {})}
        # By hand: a session keeps cookies by the name connected to, and a replica must not see another site's.
        if self.session.cookies:
            headers["Cookie"] = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.session.cookies)
        return self.session.request(
            method, f"{self.url}{path}", headers=headers, timeout=timeout_s, allow_redirects=False, **arguments
        )

    def at(self, url: str) -> "WordPress":
        """The same visitor, cookies included, at another address of the same site."""
        other = WordPress(url, self.host or self.url.partition("://")[2])
        for cookie in self.session.cookies:
            other.session.cookies.set(cookie.name, cookie.value or "")
        return other

    def installed(self) -> bool:
        """Whether the site leads to itself, not to its installer; raises WordPressError and RequestException."""
        reply = self.request("GET", "/wp-login.php")
        if reply.is_redirect and "install.php" in reply.headers["Location"]:
            return False
        if reply.status_code != requests.codes.ok:
            raise WordPressError(f"GET /wp-login.php answers {reply.status_code}: {gist(reply.text)}")
        return True

    def install(self, title: str, user: str, password: str, email: str) -> None:
        """Fill in the installer's form; raises WordPressError and RequestException."""
        form = {
            "weblog_title": title,
            "user_name": user,
            "admin_password": password,
            "admin_password2": password,
            "pw_weak": "on",
            "admin_email": email,
            "blog_public": "1",
            "language": "",
        }
        reply = self.request("POST", "/wp-admin/install.php?step=2", data=form, timeout_s=INSTALL_TIMEOUT_S)
        if reply.status_code != requests.codes.ok or not self.installed():
            raise WordPressError(f"the installer answers {reply.status_code}: {gist(reply.text)}")

    def log_in(self, user: str, password: str) -> None:
        """Log in by the form; raises WordPressError and RequestException."""
        self._nonce = ""
        self.session.cookies.set("wordpress_test_cookie", "WP Cookie check")
        form = {"log": user, "pwd": password, "wp-submit": "Log In", "testcookie": "1"}
        reply = self.request("POST", "/wp-login.php", data=form)
        if not self.logged_in_cookies():
            raise WordPressError(f"the login answers {reply.status_code}: {gist(reply.text)}")

    def logged_in_cookies(self) -> list[str]:
        """Names of the cookies that prove a login."""
        return [cookie.name for cookie in self.session.cookies if cookie.name.startswith("wordpress_logged_in")]

    def is_logged_in(self) -> bool:
        """Whether the site takes the visitor for somebody: the dashboard opens."""
        return bool(self.request("GET", "/wp-admin/profile.php").status_code == requests.codes.ok)

    def _rest(self, method: str, path: str, **arguments: Any) -> Any:
        """What the REST interface answers the logged-in visitor; raises WordPressError and RequestException."""
        if not self._nonce:
            # Of the login, for half a day; an editor's browser keeps it as well.
            nonce = self.request("GET", "/wp-admin/admin-ajax.php?action=rest-nonce")
            if nonce.status_code != requests.codes.ok:
                raise WordPressError(f"the nonce's page answers {nonce.status_code}: {gist(nonce.text)}")
            self._nonce = nonce.text.strip()
        headers = {**arguments.pop("headers", {}), "X-WP-Nonce": self._nonce}
        # By the query: a path below /wp-json is known only where somebody has chosen pretty links.
        parameters = {"rest_route": f"/wp/v2/{path}", **arguments.pop("params", {})}
        reply = self.request(method, "/index.php", params=parameters, headers=headers, **arguments)
        if not reply.ok or reply.is_redirect or "json" not in reply.headers.get("Content-Type", ""):
            raise WordPressError(f"{method} {path} answers {reply.status_code}: {gist(reply.text)}")
        return reply.json()

    def publish(self, title: str, content: str, timeout_s: float = TIMEOUT_S) -> Post:
        """Publish a post; raises WordPressError and RequestException."""
        body = {"title": title, "content": content, "status": "publish"}
        made = self._rest("POST", "posts", json=body, timeout_s=timeout_s)
        return Post(int(made["id"]), title, str(made["link"]))

    def upload(self, name: str, image: bytes, timeout_s: float = TIMEOUT_S) -> Media:
        """Upload a PNG image; raises WordPressError and RequestException."""
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Type": "image/png"}
        made = self._rest("POST", "media", data=image, headers=headers, timeout_s=timeout_s)
        return Media(int(made["id"]), re.sub(r"^https?://[^/]+", "", str(made["source_url"])))

    def delete(self, kind: str, number: int) -> None:
        """Remove a post (`posts`) or a file (`media`) for good; raises WordPressError and RequestException."""
        self._rest("DELETE", f"{kind}/{number}", params={"force": "true"})


def gist(page: str) -> str:
    """What a page says, in one short line. Pure."""
    soup = BeautifulSoup(page, "html.parser")
    for noise in soup(["script", "style"]):
        noise.decompose()
    return " ".join(soup.get_text(" ").split())[:200] or "nothing"


def png(colour: bytes) -> bytes:
    """A PNG image of one pixel; `colour` is its red, green and blue. Pure (PNG specification, section 5)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (1).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" + colour))
        + chunk(b"IEND", b"")
    )
