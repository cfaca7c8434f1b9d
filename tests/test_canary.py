"""Secrets that leak on purpose, in every way that steps and drills have: no file of the run's evidence holds one."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certificate.attestation import verify
from certificate.evidence import HIDDEN, forms_of, without
from environments.load import find
from tests.leaks import held, in_processes, leaks, watched

ROOT = Path(__file__).parent.parent
# What a password may hold and still be taken for something else by JSON, HTML, addresses or a regular expression.
CANARY = 'canary/"<&>+ ?pass=wörd\\n%41'
TOKEN = "c4n4ry-0d6f7b3c-1111-4222-8333-944444444444"
FEATURE = """
Feature: Leaks
  Scenario: Told by an assertion
    Then the canary is in an assertion
  Scenario: Told by an error
    Then the canary is in an error
  Scenario: Told by a reason
    Then the canary is in a reason
  Scenario: Logged and printed
    Then the canary is in what was logged and printed
  Scenario: Recorded by a drill
    Then the canary is in a drill's files
"""
PROMISES = """
[[promise]]
id = "P1"
text = "It is kept."
layer = "site"
built = true
"""
STEPS = """
import base64, html, json, logging
from pathlib import Path
from urllib.parse import quote, quote_plus
import pytest
from pytest_bdd import scenarios, then
from certificate.plugin import FOUND_BY
from certificate.verdict import NotExercised
from environments.load import find, load
from provisioning.session import Session
from provisioning.state import State

scenarios(".")

@pytest.fixture(scope="session")
def target(pytestconfig):
    environment = load(find(pytestconfig.option.env))
    return Session(environment, State.of("canary"))

@pytest.fixture
def forms(target):
    found = []
    for secret in (target.environment.wordpress.admin_password, target.environment.edge.api_token):
        plain = secret.reveal()
        coded = [base64.b64encode(f"{before}{plain}:tail".encode()).decode() for before in ("", "a", "ab")]
        coded += [base64.urlsafe_b64encode(f"user:{plain}".encode()).decode()]
        found += [plain, quote(plain), quote(plain, safe=""), quote_plus(plain), json.dumps(plain), html.escape(plain)]
        found += coded
    return " | ".join(found)

@then("the canary is in an assertion")
def asserted(forms): assert forms == "", f"expected nothing, found {forms}"

@then("the canary is in an error")
def broken(forms): raise OSError(f"no route with {forms}")

@then("the canary is in a reason")
def unexercised(forms): raise NotExercised(f"not with {forms}")

@then("the canary is in what was logged and printed")
def logged(forms):
    logging.getLogger("x").warning("sent %s", forms)
    print(forms)

@then("the canary is in a drill's files")
def drilled(forms, evidence_folder, request):
    folder = Path(evidence_folder) / "drills" / "one"
    folder.mkdir(parents=True)
    request.node.user_properties.append((FOUND_BY, str(folder)))
    (folder / "history.jsonl").write_text(json.dumps({"error": forms}) + "\\n")
    (folder / "report.html").write_text("<pre>" + html.escape(forms))
    told = {"drill": "one", "command": forms, "layers": {}, "redundant_s": None}
    (folder / "verdict.json").write_text(json.dumps(told))
    (folder / "timeline.png").write_bytes(b"\\x89PNG\\xff" + forms.encode() + b"\\xff\\x00")
"""
CONFTEST = """
import certificate.versions

# There is no target to be asked.
certificate.versions.of_target = lambda session: {}

def pytest_addoption(parser):
    parser.addoption("--env")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with features that leak, and an environment whose secrets are canaries."""
    features = tmp_path / "features"
    features.mkdir()
    (features / "leaks.feature").write_text(FEATURE.replace("  Scenario", "  @P1\n  Scenario"))
    (features / "promises.toml").write_text(PROMISES)
    (features / "test_leaks.py").write_text(STEPS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nbdd_features_base_dir = features\nmarkers =\n    P1\n")
    (tmp_path / "admin").write_text(CANARY)
    (tmp_path / "token").write_text(TOKEN)
    text = find("lab").read_text()
    for name, file in (("wordpress-admin-password", "admin"), ("cloudflare-token", "token")):
        text = text.replace(f"/var/lib/haproof-lab/{name}", str(tmp_path / file))
    (tmp_path / "canary.toml").write_text(text)
    return tmp_path


@pytest.fixture
def ran(checkout: Path) -> "subprocess.CompletedProcess[str]":
    """A whole run, certificate and all."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(checkout / "state")}
    variables |= {"XDG_DATA_HOME": str(checkout / "data"), "PYTEST_ADDOPTS": ""}
    options = ["-p", "certificate.plugin", "-p", "no:cacheprovider", "--env", str(checkout / "canary.toml"), "features"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=checkout,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_no_file_and_no_line_of_a_run_holds_a_secret(ran: "subprocess.CompletedProcess[str]", checkout: Path) -> None:
    assert "2 failed, 2 passed, 1 not exercised" in ran.stdout, ran.stdout + ran.stderr
    (folder,) = (folder for folder in (checkout / "out" / "lab").iterdir() if not folder.is_symlink())
    names = {file.name for file in folder.rglob("*")}
    assert "could not be written" not in ran.stdout, ran.stdout
    assert {"certificate.json", "certificate.html", "junit.xml", "history.jsonl", "report.html"} <= names
    assert leaks(checkout / "out", [CANARY, TOKEN]) == []
    assert held(f"{ran.stdout}{ran.stderr}".encode(), [CANARY, TOKEN]) == []
    # What stood beside the secrets is there still, and signed as it is.
    assert HIDDEN in (folder / "drills/one/history.jsonl").read_text()
    record = json.loads((folder / "certificate.json").read_text())
    assert any("expected nothing, found (hidden) |" in scenario["reason"] for scenario in record["scenarios"])
    assert verify(folder, []).complaints == ()


@settings(derandomize=True, max_examples=50)
@given(st.text(st.characters(min_codepoint=0x20, codec="utf-8"), min_size=6, max_size=40), st.text(max_size=5))
def test_every_form_of_a_secret_is_blotted_out(secret: str, before: str) -> None:
    coded = base64.b64encode(f"{before}{secret}{before}".encode()).decode()
    said = f"{secret} {secret!r} {json.dumps(secret)} {quote(secret)} {quote_plus(secret)} {coded}"
    left = without(sorted(forms_of(secret), key=len, reverse=True), said)
    assert secret not in left
    assert held(left.encode(), [secret]) == []


# That the search finds what there is


@pytest.mark.parametrize(
    "content",
    [
        CANARY,
        quote(CANARY),
        quote(CANARY, safe=""),
        quote_plus(CANARY),
        json.dumps(CANARY, ensure_ascii=False),
        json.dumps(CANARY),
        *(base64.b64encode(f"{before}{CANARY}".encode()).decode() for before in ("", "a", "ab")),
        "data:x;base64," + base64.b64encode(base64.b64encode(CANARY.encode())).decode(),
        "Basic/" + base64.urlsafe_b64encode(f"u:{CANARY}".encode()).decode(),
    ],
)
def test_a_secret_is_found_in_every_form(tmp_path: Path, content: str) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file.txt").write_text(f"before {content} after")
    (tmp_path / "other.txt").write_text("nothing")
    assert len(leaks(tmp_path, ["unknown secret", CANARY])) == 1
    assert leaks(tmp_path, [CANARY])[0].startswith(f"{tmp_path}/below/file.txt: secret 1 (")


def test_a_secret_in_the_list_of_processes_is_found() -> None:
    talks = [sys.executable, "-c", "import sys; sys.stdin.read()", f"--password={TOKEN}"]
    hears = {**os.environ, "PASSWORD": TOKEN}
    with watched(lambda: [TOKEN], os.getpid()) as found:
        for words, variables in ((talks, {**os.environ}), (talks[:-1], hears)):
            with subprocess.Popen(words, env=variables, stdin=subprocess.PIPE) as process:
                assert process.stdin
                seen = in_processes([TOKEN], os.getpid())
                process.stdin.close()
            assert seen, words
    assert in_processes([TOKEN], os.getpid()) == []
    assert {told.partition(" of ")[0] for told in found} <= {"command line", "environment"}
