"""What visitors and editors do, at a WordPress of this test's own that is as strict about logins as the real one."""

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from environments.model import Visit
from load import visit
from load.arrivals import Shape, segments
from load.leftovers import comments_cleared, left_by, sweep
from load.objective import summary
from load.plan import Editor
from load.record import Request, read
from load.run import run
from load.visit import COMMENT_MARK, OK, Desk, Failed, Reply, Session, assets, links
from tests.served import served
from tests.test_load import HEADER, plan

PAGE = """<link rel='stylesheet' href='http://x/wp-includes/style.css?ver=6'><script src="/wp.js"></script>
<img src="//elsewhere.org/a.png"><a href="http://x/?p=12">A post</a><a href='http://x/?p=13'>Another</a>"""
EDITOR = Editor(user="editor", password="word")
MARK = "haproof-drill-load-"


# A WordPress


@dataclass
class Kept:
    """What a site remembers."""

    posts: dict[int, dict[str, str]] = field(default_factory=dict)
    media: list[bytes] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    logins: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Blog(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    kept: Kept


class Pages(BaseHTTPRequestHandler):
    """A nonce is its login's own; who is not logged in is led away from the administration, and refused over REST."""

    protocol_version = "HTTP/1.1"
    server: Blog

    def do_GET(self) -> None:
        at = urlsplit(self.path)
        with self.server.kept.lock:
            self.server.kept.asked[f"GET {at.path}"] += 1
            if at.path == "/wp-admin/admin-ajax.php":
                self._answer(200 if self._login() else 400, f"nonce-{self._login()}" if self._login() else "0")
            elif at.path.startswith("/wp-admin/"):
                number = parse_qs(at.query).get("post", [""])[0]
                there = not number or int(number) in self.server.kept.posts
                self._answer((200 if there else 404) if self._login() else 302, "the administration")
            else:
                self._answer(200, PAGE)

    def do_POST(self) -> None:
        at, body = urlsplit(self.path), self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.kept.lock:
            self.server.kept.asked[f"POST {at.path}"] += 1
            match at.path:
                case "/wp-login.php":
                    self._logs_in(parse_qs(body.decode()))
                case "/wp-comments-post.php":
                    self.server.kept.comments.append(parse_qs(body.decode())["comment"][0])
                    self._answer(302 if len(self.server.kept.comments) == 1 else 429, "")
                case _:
                    self._rest(parse_qs(at.query)["rest_route"][0], body)

    def _login(self) -> str:
        told = SimpleCookie(self.headers.get("Cookie", "")).get("wordpress_logged_in_x")
        return told.value if told and told.value in self.server.kept.logins else ""

    def _logs_in(self, form: Mapping[str, list[str]]) -> None:
        if (form["log"], form["pwd"]) != (["editor"], ["word"]) or "test_cookie" not in self.headers.get("Cookie", ""):
            self._answer(200, "the form once more")
            return
        login = f"{self.server.kept.asked['POST /wp-login.php']:04d}"
        self.server.kept.logins.add(login)
        self._answer(302, "", {"Set-Cookie": f"wordpress_logged_in_x={login}; path=/", "Location": "/wp-admin/"})

    def _rest(self, route: str, body: bytes) -> None:
        kept, (what, _, number) = self.server.kept, route.removeprefix("/wp/v2/").partition("/")
        if not self._login() or self.headers.get("X-WP-Nonce") != f"nonce-{self._login()}":
            self._answer(403, '{"code": "rest_cookie_invalid_nonce"}')
        elif what == "media":
            kept.media.append(body)
            self._answer(201, '{"id": 7}')
        elif number:
            kept.posts[int(number)] |= json.loads(body)
            self._answer(200, json.dumps({"id": int(number)}))
        else:
            kept.posts[len(kept.posts) + 1] = json.loads(body)
            self._answer(201, json.dumps({"id": len(kept.posts)}))

    def _answer(self, status: int, text: str, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def blogging() -> Iterator[Blog]:
    blog = Blog(("127.0.0.1", 0), Pages)
    blog.kept = Kept()
    with served(blog):
        yield blog


@pytest.fixture
def blog() -> Iterator[Blog]:
    with blogging() as server:
        yield server


class Direct:
    """A browser that asks at once, and remembers under which names."""

    dice = random.Random(1)  # one for all: no two of them throw the same

    def __init__(self, server: Blog) -> None:
        self.host = f"127.0.0.1:{server.server_address[1]}"
        self.url = f"http://{self.host}"
        self.session = requests.Session()
        self.session.trust_env = False
        self.asked: list[str] = []

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
        self.asked.append(name)
        done = self.session.request(method, f"{self.url}{path}", data=body, headers=headers, allow_redirects=False)
        if done.status_code not in wanted:
            raise Failed(f"HTTP {done.status_code}")
        return Reply(done.status_code, done.text)

    def cookies(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.session.cookies.items()}

    def think(self) -> None:
        self.asked.append("thinks")


# Visitors


def test_a_reader_fetches_what_belongs_to_the_page_and_goes_on_to_a_post(blog: Blog) -> None:
    browser = Direct(blog)
    visit.read(browser)
    assert browser.asked == ["front page", "asset", "thinks", "post"]
    assert blog.kept.asked["GET /wp.js"] == 1
    assert links(PAGE) == ["/?p=12", "/?p=13"]


def test_what_lies_elsewhere_is_not_asked_of_the_site() -> None:
    assert assets(PAGE, "x") == ["/wp-includes/style.css?ver=6", "/wp.js"]
    assert assets(PAGE, "y") == ["/wp.js"]
    assert assets("no page", "x") == []


def test_a_comment_carries_the_mark_by_which_it_is_cleared_and_floods_are_no_failure(blog: Blog) -> None:
    for _ in range(3):
        visit.comment(Direct(blog))
    assert len(set(blog.kept.comments)) == 3
    assert all(text.startswith(COMMENT_MARK) for text in blog.kept.comments)


def test_a_searcher_asks_for_words(blog: Blog) -> None:
    browser = Direct(blog)
    visit.search(browser)
    assert browser.asked == ["search"]


# Editors


def test_editors_share_one_login_and_leave_what_carries_the_runs_mark(blog: Blog) -> None:
    desk = Desk(Session(EDITOR), MARK)
    for _ in range(2):
        desk.publish(Direct(blog))
        desk.upload(Direct(blog))
    assert blog.kept.asked["POST /wp-login.php"] == 1
    assert [post["title"].startswith(MARK) for post in blog.kept.posts.values()] == [True, True]
    assert all(image.startswith(b"\x89PNG") for image in blog.kept.media)


def test_an_editor_opens_a_post_and_changes_it(blog: Blog) -> None:
    desk, browser = Desk(Session(EDITOR), MARK), Direct(blog)
    desk.edit(browser)
    assert browser.asked == [
        "login", "nonce", "publish", "list of posts", "thinks", "editor", "thinks", "change",
    ]  # fmt: skip
    assert blog.kept.posts[1]["content"].startswith("load, changed: ")
    desk.edit(Direct(blog))
    assert len(blog.kept.posts) == 1


def test_who_publishes_after_somebody_else_logged_in_has_that_logins_nonce(blog: Blog) -> None:
    """WordPress makes a nonce for one login: with another's cookies it is refused with 403."""
    desk = Desk(Session(EDITOR), MARK)
    desk.publish(Direct(blog))
    desk.edit(Direct(blog))
    desk.publish(Direct(blog))
    assert blog.kept.asked["POST /wp-login.php"] == 2
    assert len(blog.kept.posts) == 2


def test_a_login_that_is_over_fails_once_and_is_renewed(blog: Blog) -> None:
    desk = Desk(Session(EDITOR), MARK)
    desk.publish(Direct(blog))
    blog.kept.logins.clear()
    with pytest.raises(Failed, match="HTTP 403"):
        desk.publish(Direct(blog))
    desk.publish(Direct(blog))
    assert len(blog.kept.posts) == 2


def test_every_sort_of_visit_succeeds_through_the_generator(blog: Blog, tmp_path: Path) -> None:
    weights = dict.fromkeys((Visit.READ, Visit.SEARCH, Visit.COMMENT, Visit.EDIT, Visit.PUBLISH, Visit.UPLOAD), 1.0)
    url = f"http://127.0.0.1:{blog.server_address[1]}/"
    parts = segments(Shape.CONSTANT, 10, 4)
    run(plan(url, segments=parts, weights=weights, editor=EDITOR, mark=MARK), HEADER, tmp_path / "run", lambda _: None)
    lines = read(tmp_path / "run")
    said = summary(lines)
    assert (said.errors, said.void, said.visitors) == ({}, "", 40)
    names = {line.name for line in lines if isinstance(line, Request)}
    assert {"front page", "search", "comment", "login", "editor", "change", "publish", "upload"} <= names
    assert any(post["content"].startswith("load, changed") for post in blog.kept.posts.values())


# What they leave


def test_comments_are_cleared_with_what_is_counted_of_them() -> None:
    asked: list[str] = []

    def query(sql: str) -> list[tuple[str, ...]]:
        asked.append(sql)
        return []

    database = SimpleNamespace(query=query, site=SimpleNamespace(database="blog"))
    shell = SimpleNamespace(check=lambda *_: "")
    environment = SimpleNamespace(with_role=lambda _: ["nfs"], nfs=SimpleNamespace(export="/srv"))
    sweep(SimpleNamespace(database=database, shell=shell, environment=environment))  # type: ignore[arg-type]
    assert asked[-1] == comments_cleared("blog")
    assert f"DELETE FROM blog.wp_comments WHERE comment_content LIKE '{COMMENT_MARK}%'" in asked[-1]
    assert any("wp_posts WHERE post_title" in sql for sql in asked[:-1])


@pytest.mark.parametrize(
    ("weights", "leaves"), [({Visit.READ: 1.0, Visit.COMMENT: 0.0}, False), ({Visit.COMMENT: 0.1}, True)]
)
def test_only_those_who_write_leave_anything(weights: dict[Visit, float], *, leaves: bool) -> None:
    assert left_by(plan("http://127.0.0.1/", weights=weights)) is leaves
