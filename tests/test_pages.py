"""The pages that people open, in a real browser: whole by themselves, readable on a telephone and in the dark."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from load import capacity_report, report
from load.record import Mark, Sample
from tests.test_certificate import finished
from tests.test_load import a_minute, kept, recorded, searched

CHROMIUM = shutil.which("chromium") or ""
WIDTH_PX = 360
FONT_PX = 10.5  # the least that is read at arm's length
# Of every word in a picture, as it is on the screen: its own size, by how far the picture is drawn out.
WORDS_PX = """[...document.querySelectorAll('svg text')].map(
    each => parseFloat(getComputedStyle(each).fontSize) * Math.hypot(each.getScreenCTM().a, each.getScreenCTM().b))"""
# Whatever is wider than the page scrolls within it.
SCROLLING = """[...document.querySelectorAll('svg, table')].map(each => each.parentElement).every(
    each => ['auto', 'scroll'].includes(getComputedStyle(each).overflowX) && each.clientWidth <= innerWidth)"""
PAGES = ("certificate", "load", "capacity")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: make setup")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Its sandbox is not for root, which the lab needs; what is opened is this suite's own.
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    marks = [Mark(what="rolling update", began_s=10, ended_s=20)]
    samples = [Sample(at_s=at, machine=f"srvk8s-worker0{at % 3 + 1}", cpu=0.2 * (at % 4)) for at in range(60)]
    recorded(folder / "load", a_minute(failed=3), *marks, *samples)
    report.write(folder / "load")
    capacity_report.write(kept(folder / "capacity", searched(), searched("a worker is down", 17.0, 19.0)))
    return {
        "certificate": finished(folder) / "certificate.html",
        "load": folder / "load" / report.PAGE,
        "capacity": folder / "capacity" / report.PAGE,
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_by_itself_and_readable_on_a_telephone(
    name: str, scheme: Any, pages: dict[str, Path], browser: Browser
) -> None:
    complaints: list[str] = []
    with browser.new_context(color_scheme=scheme, viewport={"width": WIDTH_PX, "height": 800}) as context:
        page = context.new_page()
        page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
        page.goto(pages[name].as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        wide = page.evaluate("document.documentElement.scrollWidth")
        paper, ink = (page.evaluate(f"getComputedStyle(document.body).{of}") for of in ("backgroundColor", "color"))
        words_px, scrolling = page.evaluate(WORDS_PX), page.evaluate(SCROLLING)
        written = page.evaluate("[...document.querySelectorAll('svg text')].map(each => getComputedStyle(each).fill)")
    assert complaints == []
    assert wide <= WIDTH_PX
    assert (brightness(paper) < 0.5) is (scheme == "dark")
    assert abs(brightness(paper) - brightness(ink)) > 0.6
    assert {(brightness(fill) > 0.5) for fill in written} <= {scheme == "dark"}
    assert min(words_px, default=FONT_PX) >= FONT_PX
    assert bool(words_px) is (name != "certificate")
    assert scrolling


def brightness(colour: str) -> float:
    """Of `rgb(r, g, b)`, from 0 to 1 (ITU-R BT.709)."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
