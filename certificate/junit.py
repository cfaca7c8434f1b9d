"""A run as JUnit's XML, which schedulers and CI systems read. Pure."""

from xml.etree import ElementTree

from certificate.record import Record, ScenarioRecord
from certificate.verdict import Verdict


def of(record: Record) -> bytes:
    """One test case a scenario: refuted is a failure, not judged an error, not exercised skipped."""
    seconds = sum(one.duration_s for one in record.scenarios)
    counted = {
        "tests": len(record.scenarios),
        "failures": _count(record, Verdict.REFUTED),
        "errors": _count(record, Verdict.UNKNOWN),
        "skipped": _count(record, Verdict.NOT_EXERCISED),
    }
    about = {"name": record.environment, "timestamp": record.began.isoformat(), "time": f"{seconds:.3f}"}
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(suites, "testsuite", about | {key: str(value) for key, value in counted.items()})
    for one in record.scenarios:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": one.feature, "name": one.name, "time": f"{one.duration_s:.3f}"}
        )
        if tag := _tag(one):
            ElementTree.SubElement(case, tag, {"message": _plain(one.reason)})
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True))


def _tag(one: ScenarioRecord) -> str | None:
    tags = {Verdict.REFUTED: "failure", Verdict.UNKNOWN: "error", Verdict.NOT_EXERCISED: "skipped"}
    return tags.get(one.verdict)


def _count(record: Record, verdict: Verdict) -> int:
    return sum(one.verdict is verdict for one in record.scenarios)


def _plain(text: str) -> str:
    """XML 1.0 has no place for most control characters."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
