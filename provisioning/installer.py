"""WordPress's own installer over HTTP: whether the site is installed, and its one form."""

from dataclasses import dataclass
from enum import StrEnum

import requests
from bs4 import BeautifulSoup

LOOK_TIMEOUT_S = 20
# It makes twelve tables, which in an NDB cluster takes seconds each.
INSTALL_TIMEOUT_S = 300
NO_DATABASE = "Error establishing a database connection"


class Installation(StrEnum):
    """How far the site says that it is."""

    ABSENT = "not installed"
    PRESENT = "installed"
    NO_DATABASE = "without its database"


class InstallerError(Exception):
    """The site does not answer, or its installer does not do its work; the message is what it said."""


@dataclass(frozen=True)
class Form:
    """What the installer asks for."""

    title: str
    user: str
    password: str
    email: str

    def __repr__(self) -> str:
        return f"Form({self.title!r}, {self.user!r}, …)"


def told(page: str) -> str:
    """The text of a page in one line, as much as a message can hold. Pure."""
    return BeautifulSoup(page, "html.parser").get_text(" ", strip=True)[:300]


def judge(status: int, page: str) -> Installation:
    """What the installer's first page says; raises InstallerError when that is nothing known. Pure."""
    text = told(page)
    if NO_DATABASE.lower() in text.lower():
        return Installation.NO_DATABASE
    if "Already Installed" in text:
        return Installation.PRESENT
    if status == requests.codes.ok and BeautifulSoup(page, "html.parser").find("form", id="setup"):
        return Installation.ABSENT
    raise InstallerError(f"WordPress's installer answers {status}: {text or 'an empty page'}")


@dataclass(frozen=True)
class Installer:
    """The installer of the site at `origin`."""

    origin: str

    def _call(self, method: str, path: str, timeout_s: float, **options: object) -> requests.Response:
        try:
            with requests.Session() as session:
                session.trust_env = False
                return session.request(method, self.origin + path, timeout=timeout_s, **options)  # type: ignore[arg-type]
        except requests.RequestException as error:
            raise InstallerError(f"{self.origin}{path} does not answer: {type(error).__name__}") from error

    def look(self) -> Installation:
        """Whether there is a site yet; raises InstallerError."""
        reply = self._call("GET", "/wp-admin/install.php?step=1", LOOK_TIMEOUT_S)
        return judge(reply.status_code, reply.text)

    def install(self, form: Form) -> None:
        """Fill in the form; raises InstallerError with what the installer said unless it reports success."""
        fields = {
            "weblog_title": form.title,
            "user_name": form.user,
            "admin_password": form.password,
            "admin_password2": form.password,
            "pw_weak": "on",
            "admin_email": form.email,
            "blog_public": "1",
            "language": "",
        }
        reply = self._call("POST", "/wp-admin/install.php?step=2", INSTALL_TIMEOUT_S, data=fields)
        text = told(reply.text)
        if reply.status_code != requests.codes.ok or "Success!" not in text:
            raise InstallerError(f"WordPress's installer answers {reply.status_code}: {text or 'an empty page'}")
