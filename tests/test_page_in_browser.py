"""The pages of a purification, a scan and an inspection in a real browser: each asks for nothing, fits the screen, and prints."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.report import to_html
from auditor.results.purify import PurifyResult
from tests.browser import CHROMIUM, Browser, browser
from tests.sample_inspection import hostile_inspection, sample_inspection
from tests.sample_purify import compared, sample_purify, untouched, with_names
from tests.sample_result import searched_result
from tests.test_report import HOSTILE, hostile_result

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium or chrome on PATH to open the page with"
    ),
    pytest.mark.usefixtures("figures_once"),
]

A4 = (794, 1123)
"""CSS pixels; the style sheet leaves margins of 14 and 16 mm."""
MARGINS = (106, 121)


PAGES = (
    "met",
    "untouched",
    "hostile",
    "compared",
    "searched",
    "hostile-scan",
    "unsafe",
    "hostile-unsafe",
)


def of_many_triggers() -> PurifyResult:
    """Methods compared on six triggers."""
    result = compared()
    found, judged = result.outcomes
    outcomes = (*(replace(found, probe=f"{found.probe}-{k}") for k in range(5)), judged)
    contenders = (replace(c, hits=(*c.hits[:1] * 5, c.hits[1])) for c in result.contenders)
    return replace(result, outcomes=outcomes, contenders=tuple(contenders))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "met": sample_purify(),
        "untouched": untouched(),
        "hostile": with_names(sample_purify(), HOSTILE),
        "compared": of_many_triggers(),
        "numbered": with_names(sample_purify(), tuple(map(str, range(10)))),
        "searched": searched_result(),
        "hostile-scan": hostile_result(),
        "unsafe": sample_inspection(),
        "hostile-unsafe": hostile_inspection(),
    }
    for name, result in made.items():
        (folder / f"{name}.html").write_text(to_html(result), "utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_and_fits(
    chromium: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    chromium.open(pages[name], width=width)
    asked = [entry["request"]["url"] for entry in chromium.told("Network.requestWillBeSent")]
    assert asked[0] == pages[name].as_uri()
    assert all(url.startswith("data:image/png;base64,") for url in asked[1:])
    assert chromium.told("Log.entryAdded") == [], "no refusal by the policy either"
    assert chromium.told("Runtime.consoleAPICalled") == []
    assert chromium.told("Runtime.exceptionThrown") == []
    root = "document.documentElement"
    assert chromium.evaluate(f"{root}.scrollWidth") <= chromium.evaluate("innerWidth")
    wide = """[...document.querySelectorAll("main *, header *")].filter(e =>
        !e.closest(".scroll, pre, thead, svg, details:not([open])") &&
        e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""
    assert chromium.evaluate(wide) == []


@pytest.mark.parametrize("name", ["met", "searched"])
def test_the_texts_of_figures_stay_inside(
    chromium: Browser, pages: dict[str, Path], name: str
) -> None:
    chromium.open(pages[name], width=1280)
    outside = """[...document.querySelectorAll("svg.vega text, svg.chart text")].filter(t => {
        const text = t.getBoundingClientRect(), svg = t.ownerSVGElement.getBoundingClientRect();
        return text.left < svg.left - 2 || text.right > svg.right + 2 ||
               text.bottom > svg.bottom + 3; }).map(t => t.textContent)"""
    assert chromium.evaluate(outside) == []
    assert (
        chromium.evaluate('document.querySelectorAll("svg.vega text, svg.chart text").length') > 40
    )


@pytest.mark.parametrize(("width", "media"), [(1000, "screen"), (A4[0] - MARGINS[0], "print")])
def test_the_table_of_methods_is_seen_whole(
    chromium: Browser, pages: dict[str, Path], width: int, media: str
) -> None:
    chromium.open(pages["compared"], width=width)
    chromium.call("Emulation.setEmulatedMedia", media=media)
    region = 'document.querySelector("[aria-labelledby=methods] .scroll")'
    assert chromium.evaluate(f"{region}.querySelectorAll('thead th').length") == 10
    assert chromium.evaluate(f"{region}.scrollWidth") <= chromium.evaluate(f"{region}.clientWidth")
    chromium.call("Emulation.setEmulatedMedia", media="")


def test_a_hit_is_red_whether_or_not_the_class_has_a_name(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    for name in ("met", "numbered"):
        chromium.open(pages[name], width=1280)
        colour = "getComputedStyle(document.querySelector('.cases .hit .class')).color"
        red = "getComputedStyle(document.querySelector('.f-before')).fill"
        assert chromium.evaluate(colour) == chromium.evaluate(red)


def test_dark_screens_turn_the_figures(chromium: Browser, pages: dict[str, Path]) -> None:
    def colours(dark: bool) -> list[str]:
        chromium.open(pages["met"], width=1280, dark=dark)
        names = ("f-ink", "f-quiet", "f-after", "f-before", "f-c0", "f-c9", "s-paper")
        return [
            chromium.evaluate(
                f'(s => s.{"stroke" if name[0] == "s" else "fill"})'
                f'(getComputedStyle(document.querySelector("svg.vega .{name}")))'
            )
            for name in names
        ]  # fmt: skip

    assert not set(colours(False)) & set(colours(True))


def test_it_prints_without_cutting_a_figure(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["met"], width=A4[0] - MARGINS[0])
    chromium.call("Emulation.setEmulatedMedia", media="print")
    figures = chromium.evaluate(
        """[...document.querySelectorAll("figure")].map(f =>
        [f.getBoundingClientRect().height, getComputedStyle(f).breakInside])"""
    )
    assert len(figures) > 30
    for height, rule in figures:
        assert rule == "avoid"
        assert height < A4[1] - MARGINS[1]
    assert chromium.evaluate("document.documentElement.scrollWidth") <= A4[0] - MARGINS[0]
    chromium.call("Emulation.setEmulatedMedia", media="")
    printed = chromium.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
