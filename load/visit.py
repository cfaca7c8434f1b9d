"""What visitors and editors do, request by request, as their browsers would; all effects are the browser's."""

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import SplitResult, urlencode, urlsplit

from environments.model import Visit
from load.plan import Editor
from provisioning.wordpress import png

OK, CREATED, FOUND = 200, 201, 302
# The site's own protection from floods: one comment from an address in 15 s is taken, each other one is told so.
COMMENT_ANSWERS = (FOUND, 429)
ASSETS_MAX = 6
ASSET = re.compile(r"""<(?:link|script|img)\b[^>]*?\b(?:href|src)=['"]([^'"]+\.(?:css|js|png|jpe?g|svg)[^'"]*)""")
COMMENT_MARK = "haproof-load-"  # what comments begin with, so that they can be cleared
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Failed(Exception):
    """A request did not do what it was for; the kind is what is counted."""


class NotSent(Exception):
    """A request did not leave this machine, for a reason of the machine's own; the kind is what is counted."""


@dataclass(frozen=True)
class Reply:
    """An answer: its status, the cookies that it sets, where it leads, and its text."""

    status: int
    text: str
    location: str = ""


class Browser(Protocol):
    """Sends requests of one visitor to one host; cookies are its own, every request is counted under a name."""

    @property
    def host(self) -> str:
        """Whom it asks, with the port where the URL has one."""

    @property
    def dice(self) -> random.Random:
        """What its visitor leaves to chance."""

    def send(
        self,
        name: str,
        method: str,
        path: str,
        *,
        body: bytes | str = "",
        headers: Mapping[str, str] | None = None,
        wanted: tuple[int, ...] = (OK,),
    ) -> Reply:
        """The answer; raises Failed for any status but the wanted ones, and for none at all, or NotSent."""

    def cookies(self) -> dict[str, str]:
        """What the site has set."""

    def think(self) -> None:
        """Wait as long as a person looks at a page."""


@dataclass(frozen=True)
class Login:
    """What a login is known by: its cookies, and the nonce that WordPress made for these and no others."""

    cookies: Mapping[str, str]
    nonce: str


@dataclass
class Session:
    """What an editor's browsers share: WordPress keeps an account's logins in one value, so one logs in for all.

    `posts` are the numbers of those published so far.
    """

    editor: Editor
    login: Login | None = None
    posts: list[int] = field(default_factory=list)


def path_of(url: SplitResult) -> str:
    """What of a URL its host is asked for. Pure."""
    return f"{url.path}?{url.query}".rstrip("?")


def assets(page: str, host: str) -> list[str]:
    """Paths of styles, scripts and pictures that a browser would fetch for a page from the site itself. Pure."""
    found = [urlsplit(url) for url in ASSET.findall(page)]
    paths = [path_of(url) for url in found if url.netloc in ("", host)]
    return list(dict.fromkeys(path for path in paths if path.startswith("/")))[:ASSETS_MAX]


def links(page: str) -> list[str]:
    """Paths of the posts that a page leads to. Pure."""
    found = re.findall(r"""<a\b[^>]*?\bhref=['"](?:https?://[^/'"]+)?(/\?p=\d+|/index\.php\?p=\d+)['"]""", page)
    return list(dict.fromkeys(found))


def read(browser: Browser) -> None:
    """The front page with what belongs to it, then a post."""
    page = browser.send("front page", "GET", "/").text
    for path in assets(page, browser.host):
        browser.send("asset", "GET", path)
    if posts := links(page):
        browser.think()
        browser.send("post", "GET", browser.dice.choice(posts))


def token(browser: Browser) -> str:
    """Sixteen digits that nobody else has thrown."""
    return f"{browser.dice.getrandbits(64):016x}"


def search(browser: Browser) -> None:
    """Words that are there, and words that are not."""
    words = browser.dice.choice(("hello", "world", "wordpress", "nowhere"))
    browser.send("search", "GET", f"/?{urlencode({'s': words})}")


def comment(browser: Browser) -> None:
    """A post, and a word below it, by somebody who was never here."""
    browser.send("post", "GET", "/?p=1")
    browser.think()
    somebody = token(browser)
    form = {
        "comment": f"{COMMENT_MARK}{somebody}",
        "author": "Visitor",
        "email": f"{somebody}@example.org",
        "comment_post_ID": "1",
        "comment_parent": "0",
    }
    body = urlencode(form)
    browser.send("comment", "POST", "/wp-comments-post.php", body=body, headers=FORM, wanted=COMMENT_ANSWERS)


@dataclass
class Desk:
    """What editors do: each logs in where nobody has yet, and leaves posts and files that carry the run's mark."""

    session: Session
    mark: str

    def edit(self, browser: Browser) -> None:
        """Log in anew, open a post of the run's own from the list, and change it; the first one writes it."""
        self.session.login = self._log_in(browser)
        if not self.session.posts:
            self.publish(browser)
        number = browser.dice.choice(self.session.posts)
        headers = self._headers(self._logged_in(browser).cookies)
        browser.send("list of posts", "GET", "/wp-admin/edit.php", headers=headers)
        browser.think()
        browser.send("editor", "GET", f"/wp-admin/post.php?post={number}&action=edit", headers=headers)
        browser.think()
        body = json.dumps({"content": f"load, changed: {token(browser)}"})
        self._rest(browser, "change", f"posts/{number}", body, {"Content-Type": "application/json"}, OK)

    def publish(self, browser: Browser) -> None:
        """A post, over REST."""
        body = json.dumps({"title": f"{self.mark}{token(browser)}", "content": "load", "status": "publish"})
        made = self._rest(browser, "publish", "posts", body, {"Content-Type": "application/json"}, CREATED)
        self.session.posts.append(int(json.loads(made.text)["id"]))

    def upload(self, browser: Browser) -> None:
        """An image, over REST."""
        name = f"{self.mark}{token(browser)}.png"
        headers = {"Content-Type": "image/png", "Content-Disposition": f'attachment; filename="{name}"'}
        self._rest(browser, "upload", "media", png(browser.dice.randbytes(3)), headers, CREATED)

    def _rest(
        self, browser: Browser, name: str, what: str, body: bytes | str, headers: Mapping[str, str], wanted: int
    ) -> Reply:
        login = self._logged_in(browser)
        path = f"/index.php?{urlencode({'rest_route': f'/wp/v2/{what}'})}"
        own = {**self._headers(login.cookies), "X-WP-Nonce": login.nonce, **headers}
        try:
            return browser.send(name, "POST", path, body=body, headers=own, wanted=(wanted,))
        except Failed:
            if self.session.login is login:
                self.session.login = None  # it may be over
            raise

    def _logged_in(self, browser: Browser) -> Login:
        if self.session.login is None:
            self.session.login = self._log_in(browser)
        return self.session.login

    def _log_in(self, browser: Browser) -> Login:
        editor = self.session.editor
        form = {"log": editor.user, "pwd": editor.password, "wp-submit": "Log In", "testcookie": "1"}
        headers = {**FORM, **editor.headers, "Cookie": "wordpress_test_cookie=WP Cookie check"}
        browser.send("login", "POST", "/wp-login.php", body=urlencode(form), headers=headers, wanted=(FOUND,))
        cookies = browser.cookies()
        path = "/wp-admin/admin-ajax.php?action=rest-nonce"
        return Login(cookies, browser.send("nonce", "GET", path, headers=self._headers(cookies)).text.strip())

    def _headers(self, cookies: Mapping[str, str]) -> dict[str, str]:
        told = "; ".join(f"{name}={value}" for name, value in cookies.items())
        return {**self.session.editor.headers, **({"Cookie": told} if told else {})}


Act = Callable[[Browser], None]


def acts(desk: Desk | None) -> dict[Visit, Act]:
    """Every sort of visit, by name; those of editors only where there is an account."""
    found: dict[Visit, Act] = {Visit.READ: read, Visit.SEARCH: search, Visit.COMMENT: comment, Visit.PAGE: page}
    if desk is not None:
        found |= {Visit.EDIT: desk.edit, Visit.PUBLISH: desk.publish, Visit.UPLOAD: desk.upload}
    return found


def page(browser: Browser) -> None:
    """The page that the run was given, and nothing else: what other generators do."""
    browser.send("page", "GET", "")
