"""Access as people meet it: its login pages, the PIN that comes by letter, the session that it ends in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urljoin, urlsplit

import requests
from bs4 import BeautifulSoup, Tag

from environments.model import Mailbox
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.public import PublicHost

TEAM = re.compile(r"[a-z0-9-]+\.cloudflareaccess\.com")
LOGIN_PATH = "/cdn-cgi/access/login/"
SESSION_COOKIE = "CF_Authorization"
PIN = re.compile(r"\b\d{6}\b")
TIMEOUT_S = 30
REDIRECTS = 5


class LoginError(Exception):
    """A page was not what a login expects there: which one, and what it was."""


def leads_to_login(status: int, location: str, host: str) -> bool:
    """Whether an answer sends the visitor to the login of Access for `host`. Pure."""
    where = urlsplit(location)
    return status == requests.codes.found and bool(
        where.scheme == "https" and TEAM.fullmatch(where.hostname or "") and where.path == f"{LOGIN_PATH}{host}"
    )


@dataclass(frozen=True)
class Letters:
    """A mailbox of ours, read over HTTP; raises requests.RequestException."""

    mailbox: Mailbox
    ca: str | None

    def to(self, address: str) -> list[str]:
        """Every letter to an address, oldest first."""
        return [str(letter) for letter in self._asked("GET", address).json()["letters"]]

    def age(self, address: str, older_s: float) -> None:
        """Let the PINs that were sent to an address grow older; only where the mailbox `ages`."""
        self._asked("POST", address, {"older_s": older_s})

    def _asked(self, method: str, address: str, given: Mapping[str, float] | None = None) -> requests.Response:
        reply = requests.request(
            method,
            f"{str(self.mailbox.url).rstrip('/')}/{quote(address)}",
            json=given,
            headers={"Authorization": f"Bearer {self.mailbox.token.reveal()}"},
            verify=self.ca or True,
            timeout=TIMEOUT_S,
        )
        reply.raise_for_status()
        return reply

    def pin(self, address: str, before: int, timeout_s: float) -> str | None:
        """The PIN in the letter that came after the first `before`; nothing when none comes in that time."""

        def came() -> str:
            found = [match[0] for letter in self.to(address)[before:] if (match := PIN.search(letter))]
            if not found:
                raise NotYet("no letter")
            return found[-1]

        try:
            return poll(f"a PIN for {address}", came, timeout_s=timeout_s, interval_s=0.2)
        except DeadlineExceeded:
            return None


@dataclass
class Login:
    """One person's way through the login, in one browser; each step keeps the page that the next one needs.

    Steps raise LoginError and requests.RequestException.
    """

    public: PublicHost
    browser: requests.Session = field(init=False)
    page: requests.Response = field(init=False)

    def __post_init__(self) -> None:
        self.browser = self.public.session()

    def begin(self, target: str) -> None:
        """Ask for a guarded page, and be led to the one that asks for an address."""
        first = self._open(f"https://{self.public.name}{target}")
        where = first.headers.get("Location", "")
        if not leads_to_login(first.status_code, where, self.public.name):
            raise LoginError(f"GET {target} answers {first.status_code} {where}, and leads to no login")
        self.page = self._open(where)

    def give(self, field_type: str, value: str) -> requests.Response:
        """Fill in the page's form, its one field of that type, and send it."""
        form = BeautifulSoup(self.page.text, "html.parser").find("form")
        fields = form.find_all("input") if isinstance(form, Tag) else []
        named = {str(field["name"]): str(field.get("value", "")) for field in fields if field.get("name")}
        own = next((str(field["name"]) for field in fields if field.get("type") == field_type), None)
        if not isinstance(form, Tag) or own is None:
            raise LoginError(f"{self.page.url} answers {self.page.status_code} and has no field of type {field_type}")
        action = urljoin(self.page.url, str(form.get("action") or ""))
        return self.browser.post(action, data={**named, own: value}, allow_redirects=False, timeout=TIMEOUT_S)

    def ask(self, address: str) -> requests.Response:
        """Ask for a PIN to an address; gives the page that asks for it."""
        self.page = self.give("email", address)
        return self.page

    def enter(self, pin: str) -> str | None:
        """Enter a PIN; gives the session, or nothing where the PIN is refused. The page stays for another one."""
        reply = self.give("text", pin)
        for _ in range(REDIRECTS):
            if not reply.is_redirect:
                return None
            reply = self._open(urljoin(reply.url, reply.headers["Location"]))
            for cookie in reply.cookies:
                if cookie.name == SESSION_COOKIE:
                    return str(cookie.value)
        raise LoginError(f"a PIN leads from page to page, at last to {reply.url}")

    def _open(self, url: str) -> requests.Response:
        return self.browser.get(url, allow_redirects=False, timeout=TIMEOUT_S)
