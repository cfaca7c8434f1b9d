"""A pytest plugin: the outcome “not exercised”, and at the end what is known of every promise."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd.scenario import scenario_wrapper_template_registry

from steps.promises import Promise, Scenario, evidence, read, templates
from steps.verdict import NOT_SELECTED, Finding, NotExercised, Verdict, of_error, of_promise, weightiest

CATEGORY = "not exercised"
SIGNS = {Verdict.PROVEN: "+", Verdict.REFUTED: "-", Verdict.UNKNOWN: "?", Verdict.NOT_EXERCISED: "n"}
COLOURS = {Verdict.PROVEN: "green", Verdict.REFUTED: "red", Verdict.UNKNOWN: "red", Verdict.NOT_EXERCISED: "yellow"}


class Certificate:
    """Gathers what each scenario's phases showed, and prints what that makes of the promises."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._findings: dict[Scenario, list[Finding]] = {}

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
            vars(report)["not_exercised"] = str(error)
        function = getattr(item, "function", None)
        template = None if function is None else scenario_wrapper_template_registry.get(function)
        if template is not None:
            found = self._findings.setdefault(Scenario.of(template), [])
            if isinstance(error, pytest.skip.Exception):
                found.append(Finding(Verdict.NOT_EXERCISED, str(error)))
            elif error is not None:
                found.append(of_error(error, during_steps=call.when == "call"))
            elif call.when == "call":
                found.append(Finding(Verdict.PROVEN) if report.passed else Finding(Verdict.UNKNOWN, report.outcome))
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Any:
        """The category, letter and word of the third outcome."""
        if "not_exercised" in vars(report):
            return CATEGORY, "n", ("NOT EXERCISED", {"yellow": True})
        return None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Reasons for what was not exercised, then every promise with its scenarios."""
        if reports := terminalreporter.stats.get(CATEGORY):
            terminalreporter.section(CATEGORY, yellow=True)
            for report in reports:
                terminalreporter.write_line(f"{report.head_line or report.nodeid}: {vars(report)['not_exercised']}")
        if self._findings:
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

    def judged(self) -> list[tuple[Promise, Finding, dict[str, Finding]]]:
        """Every promise, what is known of it, and of each of its scenarios by name."""
        promises = read(self._folder / "promises.toml")
        tagged = evidence(promises, templates(self._folder))
        rows = []
        for promise in promises:
            found = {
                scenario.name: weightiest(self._findings.get(scenario, [NOT_SELECTED]))
                for scenario in tagged[promise.id]
            }
            rows.append((promise, of_promise(promise, found), found))
        return rows


def pytest_configure(config: pytest.Config) -> None:
    """Begin a certificate for the features of this run's root folder."""
    folder = config.rootpath / str(config.getini("bdd_features_base_dir") or "features")
    config.pluginmanager.register(Certificate(folder), "haproof-certificate")
