"""A pytest plugin: the outcome “not exercised”, and at the end what is known of every promise, kept and signed."""

import hashlib
import shlex
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd.parser import ScenarioTemplate
from pytest_bdd.scenario import scenario_wrapper_template_registry

from certificate import attestation, figures, versions
from certificate.archive import Archive
from certificate.evidence import Evidence, secrets_of, without
from certificate.promises import Promise, Scenario, evidence, read, tags_of, templates
from certificate.record import PromiseRecord, Record, ScenarioRecord, Software
from certificate.verdict import (
    Finding,
    NotExercised,
    Outcome,
    Verdict,
    of_error,
    of_promise,
    of_run,
    weightiest,
)
from environments.load import EnvironmentInvalid, find
from provisioning.session import Session

CATEGORY = "not exercised"
NOT_JUDGED = 6  # exit code: something was tried, and could not be judged; pytest's own end at 5
SIGNS = {Verdict.PROVEN: "+", Verdict.REFUTED: "-", Verdict.UNKNOWN: "?", Verdict.NOT_EXERCISED: "n"}
COLOURS = {Verdict.PROVEN: "green", Verdict.REFUTED: "red", Verdict.UNKNOWN: "red", Verdict.NOT_EXERCISED: "yellow"}
ENDED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)  # with everything judged, or ended by -x
FOUND_BY = "evidence"  # the user property by which a scenario names a folder of evidence
OUT = Path("out")
PLUGIN = "haproof-certificate"  # the name by which pytest knows this run's certificate
UNFINISHED = Finding(Verdict.UNKNOWN, "selected, and the run ended before it was judged")

Judged = list[tuple[Promise, Finding, dict[str, Finding]]]


@dataclass
class Course:
    """How one scenario went: what each of its phases showed, said and took."""

    findings: list[Finding] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    folders: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """What is judged, and its description and what judges it as they were before it was opened: files may change."""

    target: Session
    description: bytes
    software: Software


class Certificate:
    """Gathers what each scenario's phases showed, prints what that makes of the promises, and keeps it."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._courses: dict[Scenario, Course] = {}
        self._awaited: dict[str, Scenario] = {}
        self._nodes: dict[Scenario, str] = {}
        self._setting_up_s = 0.0
        self._began = datetime.now(UTC)
        self._subject: Subject | None = None
        self._kept: Record | None = None
        self._trouble: list[str] = []
        self._secrets: tuple[str, ...] = ()

    def evidence_folder(self, target: Session) -> Path:
        """Where this run's evidence goes."""
        return self._evidence(target).folder

    def _evidence(self, target: Session) -> Evidence:
        return Evidence.of(OUT, target.environment.name, self._began)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Whatever is selected is to be judged."""
        for item in session.items:
            if (template := _template(item)) is not None:
                self._awaited[item.nodeid] = Scenario.of(template)
                self._nodes[Scenario.of(template)] = item.nodeid.partition("[")[0]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Hear of the target when it is opened: steps ask for it while they run, and no scenario names it.

        To bring it up is no part of how long the scenario took that came first.
        """
        began_s = time.monotonic()
        read = self._at_hand() if fixturedef.argname == "target" else None
        made = yield
        if read is not None and isinstance(made, Session):
            self._subject = Subject(made, *read)
            self._secrets = secrets_of(made.environment)
            self._setting_up_s = time.monotonic() - began_s
        return made

    def _at_hand(self) -> tuple[bytes, Software] | None:
        """The description and the software; None without a description, of which the target's opening tells."""
        try:
            description = find(self._config.getoption("env", "")).read_bytes()
        except (EnvironmentInvalid, OSError):
            return None
        return description, versions.of_software(self._config.rootpath)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Turn NotExercised into its own outcome, and keep what the phase showed."""
        report = yield
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, NotExercised):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.reportinfo()[1] or 0, str(error))
            vars(report)["not_exercised"] = without(self._secrets, str(error))
        blot(report, self._secrets)
        if (template := _template(item)) is not None:
            self._heard(template, item, call, report)
        return report

    def _heard(
        self, template: ScenarioTemplate, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        course = self._courses.setdefault(Scenario.of(template), Course())
        course.duration_s += max(0.0, call.duration - self._setting_up_s)
        self._setting_up_s = 0.0
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, pytest.skip.Exception):
            course.findings.append(Finding(Verdict.NOT_EXERCISED, without(self._secrets, str(error))))
        elif error is not None:
            finding = of_error(error, during_steps=call.when == "call")
            course.findings.append(replace(finding, reason=without(self._secrets, finding.reason)))
        elif call.when == "call":
            course.findings.append(
                Finding(Verdict.PROVEN) if report.passed else Finding(Verdict.UNKNOWN, report.outcome)
            )
        if error is not None and not isinstance(error, NotExercised | pytest.skip.Exception):
            course.said.append(f"-- {call.when} --\n{report.longreprtext}")
        if call.when == "teardown":
            self._awaited.pop(item.nodeid, None)
            # pytest hands down the sections of the earlier phases to the last.
            course.said += [f"-- {name} --\n{text}" for name, text in report.sections]
            course.folders += [Path(str(value)) for name, value in item.user_properties if name == FOUND_BY]

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Any:
        """The category, letter and word of the third outcome."""
        if "not_exercised" in vars(report):
            return CATEGORY, "n", ("NOT EXERCISED", {"yellow": True})
        return None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Keep and sign what was found, where a target was judged; the exit code says what pytest's own cannot."""
        if self._courses:
            self._end_of_the_awaited()
        if self._subject is None or not self._courses:
            return
        interrupted = "" if exitstatus in ENDED else f"the run was interrupted (pytest's exit code {int(exitstatus)})"
        try:
            self._kept = self._keep(self._subject, interrupted)
        except (OSError, attestation.NotSigned) as error:
            self._trouble.append(f"the certificate could not be written: {error}; nothing is certified")
            session.exitstatus = NOT_JUDGED
            return
        self._remember(self._subject.target, self._kept)
        if self._kept.outcome is Outcome.NOT_JUDGED and exitstatus in ENDED:
            session.exitstatus = NOT_JUDGED

    def _end_of_the_awaited(self) -> None:
        """Whatever was selected and did not come to its end is not judged."""
        for scenario in self._awaited.values():
            self._courses.setdefault(scenario, Course()).findings.append(UNFINISHED)

    def _keep(self, subject: Subject, interrupted: str) -> Record:
        target = subject.target
        found, environment = self._evidence(target), target.environment
        found.folder.mkdir(parents=True, exist_ok=True)
        found.blot(self._secrets)
        judged = self.judged()
        outcome, reasons = of_run({promise: (finding, each) for promise, finding, each in judged}, interrupted)
        scenarios = tuple(self._scenarios(found))
        front_page = figures.of_front_page(f"http://{environment.wordpress.vip}/")
        record = self._compared(
            Record(
                environment=environment.name,
                sha256=hashlib.sha256(subject.description).hexdigest(),
                began=self._began,
                ended=datetime.now(UTC),
                command=without(self._secrets, shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
                software=subject.software,
                versions=versions.of_target(target),
                emulated=target.environment.stand_ins,
                outcome=outcome,
                reasons=reasons,
                promises=tuple(
                    PromiseRecord(promise=promise, verdict=finding.verdict, reason=finding.reason)
                    for promise, finding, _ in judged
                ),
                scenarios=scenarios,
                interrupted=interrupted,
                figures={**figures.of_scenarios(scenarios, found.folder), **front_page},
            )
        )
        found.finish(record, subject.description)
        named = self._config.option.signing_key
        attestation.sign(found.folder, attestation.own_key() if named is None else named)
        found.publish()
        return record

    def _compared(self, record: Record) -> Record:
        """With what is worse than before, so that it is signed as well."""
        try:
            with Archive.of_user() as archive:
                return archive.compared(record)
        except OSError as error:
            self._trouble.append(f"not compared with earlier runs: {error}")
            return record

    def _remember(self, target: Session, record: Record) -> None:
        """In the history; the certificate stands without it."""
        try:
            with Archive.of_user() as archive:
                archive.add(self.evidence_folder(target), record)
        except OSError as error:
            self._trouble.append(f"written and signed, and not kept in the history: {error}")

    def _scenarios(self, found: Evidence) -> Generator[ScenarioRecord, None, None]:
        promises = {promise.id for promise in read(self._folder / "promises.toml")}
        for number, template in enumerate(templates(self._folder), start=1):
            course = self._courses.get(Scenario.of(template), Course())
            finding = weightiest(course.findings)
            files = [found.log(number, template.name, "\n".join(course.said))] if course.said else []
            for folder in course.folders:
                files += found.within(folder)
            yield ScenarioRecord(
                feature=Path(template.feature.filename).relative_to(self._folder.parent).as_posix(),
                name=template.name,
                text=_text(template),
                promises=tuple(sorted(tags_of(template) & promises)),
                verdict=finding.verdict,
                reason=finding.reason,
                duration_s=course.duration_s,
                evidence=tuple(files),
                command=self._again(Scenario.of(template)),
            )

    def _again(self, scenario: Scenario) -> str:
        """The command that runs a scenario again; empty where it was not selected."""
        node = self._nodes.get(scenario)
        return shlex.join(["pytest", "--env", self._config.option.env, "--no-build", node]) if node else ""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Reasons for what was not exercised, then every promise with its scenarios, then the verdict."""
        if reports := terminalreporter.stats.get(CATEGORY):
            terminalreporter.section(CATEGORY, yellow=True)
            for report in reports:
                terminalreporter.write_line(f"{report.head_line or report.nodeid}: {vars(report)['not_exercised']}")
        if self._courses:
            terminalreporter.section("promises")
            for promise, finding, found in self.judged():
                terminalreporter.write(f"{promise.id:<4}")
                terminalreporter.write(f"{finding.verdict:<14}", **{COLOURS[finding.verdict]: True})
                terminalreporter.write_line(promise.text)
                if finding.reason and (finding.reason in (promise.reason, promise.limit) or not found):
                    terminalreporter.write_line(f"{'':<18}{finding.reason}")
                for name, one in found.items():
                    reason = f": {one.reason}" if one.reason else ""
                    terminalreporter.write_line(f"{'':<18}{SIGNS[one.verdict]} {name}{reason}")
            terminalreporter.write_line("    ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items()))
        self._tell_verdict(terminalreporter)

    def _tell_verdict(self, terminal: pytest.TerminalReporter) -> None:
        for line in self._trouble:
            terminal.write_line(line, red=True)
        if self._kept is None or self._subject is None:
            return
        terminal.section("certificate")
        terminal.write_line(self._kept.outcome.upper(), bold=True)
        for reason in self._kept.reasons:
            terminal.write_line(f"  {reason}")
        for change in self._kept.slower:
            terminal.write_line(f"  {change}")
        folder = self.evidence_folder(self._subject.target)
        terminal.write_line(f"{folder}/certificate.html; is it unchanged? python -m certificate verify {folder}")

    def judged(self) -> Judged:
        """Every promise, what is known of it, and of each of its scenarios by name."""
        promises = read(self._folder / "promises.toml")
        tagged = evidence(promises, templates(self._folder))
        rows = []
        for promise in promises:
            found = {
                scenario.name: weightiest(self._courses[scenario].findings if scenario in self._courses else [])
                for scenario in tagged[promise.id]
            }
            rows.append((promise, of_promise(promise, found), found))
        return rows


def blot(report: pytest.TestReport, secrets: Sequence[str]) -> None:
    """Take secrets out of what pytest will print of a phase."""
    report.sections = [(name, without(secrets, text)) for name, text in report.sections]
    if report.failed and (told := without(secrets, report.longreprtext)) != report.longreprtext:
        report.longrepr = told
    elif report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, without(secrets, reason))


def _template(item: pytest.Item) -> ScenarioTemplate | None:
    function = getattr(item, "function", None)
    return None if function is None else scenario_wrapper_template_registry.get(function)


def _text(template: ScenarioTemplate) -> str:
    """A scenario as its feature has it, with the background's steps."""
    lines = [f"Scenario: {template.name}"]
    lines += [f"  {step.keyword} {step.name}" for step in template.steps]
    return "\n".join(lines)


def pytest_addoption(parser: pytest.Parser) -> None:
    """By whom it is signed."""
    group = parser.getgroup("haproof", "target")
    group.addoption(
        "--signing-key",
        metavar="FILE",
        type=Path,
        help="private key in PEM that signs the certificate (default: one of your own, made when missing)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin a certificate for the features of this run's root folder.

    Raises pytest.UsageError for a key that cannot sign: it is better told before anything is judged.
    """
    if (named := config.option.signing_key) is not None:
        try:
            attestation.signer_of(named)
        except attestation.NotSigned as error:
            raise pytest.UsageError(
                f"--signing-key: {error}; name a file that holds one, or leave the option out to sign with your own"
            ) from error
    folder = config.rootpath / str(config.getini("bdd_features_base_dir") or "features")
    config.pluginmanager.register(Certificate(config, folder), PLUGIN)


@pytest.fixture(scope="session")
def evidence_folder(pytestconfig: pytest.Config, target: Session) -> Path:
    """Where this run's evidence goes."""
    certificate: Certificate = pytestconfig.pluginmanager.getplugin(PLUGIN)
    return certificate.evidence_folder(target)
