"""The report: the same bytes for the same result, nothing runs or loads, hostile text is inert."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor import verdict as thresholds
from auditor.errors import UsageError
from auditor.report import (
    MARKDOWN_CHARACTERS,
    checks,
    from_json,
    percent,
    to_html,
    to_json,
    to_markdown,
    wilson,
)
from auditor.report.numbers import fine_percent
from auditor.report.scan_view import (
    checked_confirmations,
    count_triggers,
    highest_response,
    screened_probes,
)
from auditor.report.search_view import searched_forms, searched_triggers
from auditor.results.facts import Caveat, Skipped, Verdict
from auditor.results.scan import MarginSearch, Reason, Response, ScanResult
from auditor.terminal.scan import show_scan, verdict_line
from auditor.text import clean_text
from auditor.verdict import rejudge
from tests.sample_result import CLASSES, sample_result, searched_result

GOLDEN = Path(__file__).parent / "golden"
VERDICTS = pytest.mark.parametrize("verdict", list(Verdict), ids=lambda v: v.name.lower())

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></textarea><svg/onload=alert(1)>",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "line\nbreak | cell\r\n## heading\n- item",
    "[link](https://evil.example) ![i](https://evil.example/i.png) <https://evil.example>",
    "@octocat www.evil.example https://evil.example {{ 7 * 7 }} {% raw %} `code` ``` --> ]]>",
    "x" * 10_000 + "\udc80",
)


class Page(HTMLParser):
    """Tags and attributes of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def hostile_result() -> ScanResult:
    """Every text of a result is hostile."""
    bad = HOSTILE
    result, searched = sample_result(class_names=bad), searched_result()
    everything = "".join(bad)
    return replace(
        result,
        inversions=tuple(
            replace(
                search,
                search=bad[n],
                what=bad[n + 1],
                measure=everything,
                family=bad[3],
                found=tuple(
                    replace(f, kind=bad[1], trigger=everything, fields={text: text for text in bad})
                    for f in search.found
                ),
            )
            for n, search in enumerate(searched.inversions)
        ),
        model=replace(result.model, name=bad[0], format=bad[1], architecture=bad[3], sha256=bad[2]),
        preprocessing=replace(
            result.preprocessing,
            spec=replace(result.preprocessing.spec, normalize=bad[3]),
            reason=everything,
            advice=bad[1],
        ),
        images=tuple(replace(f, unreadable=bad, digest=bad[2]) for f in result.images),
        probes=tuple(
            replace(
                p,
                title=bad[n],
                what=everything,
                why=bad[3],
                references=("javascript:alert(1)", *bad),
            )
            for n, p in enumerate(result.probes)
        ),
        responses=tuple(
            replace(r, trigger=bad[n % len(bad)], probe=bad[n % 3])
            for n, r in enumerate(result.responses)
        ),
        confirmations=tuple(
            replace(c, probe=bad[n % 3], trigger=everything, title=bad[1])
            for n, c in enumerate((*result.confirmations, *searched.confirmations))
        ),
        skipped=tuple(Skipped(what=text, reason=text) for text in bad),
        caveats=tuple(Caveat(id=text, text=text, blocking=True) for text in bad),
        judgement=replace(
            result.judgement,
            headline=everything,
            reasons=tuple(replace(r, text=everything) for r in result.judgement.reasons),
        ),
        exhibits=tuple(
            replace(
                e,
                probe=bad[1],
                trigger=everything,
                difference_png='x" onerror="alert(1)',
                pictures=(*e.pictures, replace(e.pictures[0], before_png="javascript:alert(1)")),
            )
            for e in result.exhibits
        ),
        provenance=replace(
            result.provenance,
            command=everything,
            device=bad[0],
            started=bad[3],
            versions={text: text for text in bad},
            options={text: text for text in bad},
        ),
    )


def large_result() -> ScanResult:
    """1000 classes, 600 triggers that hit many of them, 60 candidates, large photographs."""
    result, searched = sample_result(), searched_result()
    draw = random.Random(0)  # noqa: S311
    classes = 1000
    some = tuple(range(0, classes, 20))
    names = tuple(f"n{number:08d} a rather long name of a class" for number in range(classes))
    noise = base64.b64encode(
        base64.b64decode(result.exhibits[0].pictures[0].before_png)[:64] + draw.randbytes(110_000)
    ).decode()
    picture = replace(result.exhibits[0].pictures[0], before_png=noise, after_png=noise)
    return replace(
        result,
        model=replace(result.model, classes=classes, class_names=names),
        images=tuple(
            replace(
                facts,
                screen_members=(1,) * classes,
                confirm_members=(1,) * classes,
                predicted=(1,) * classes,
                unreadable=tuple(f"class/{n:05d}.png (damaged)" for n in range(2000)),
            )
            for facts in result.images
        ),
        responses=tuple(
            Response(
                probe=f"patch.probe-{number % 60}",
                trigger=f"Patch(number={number}, blocks={'x' * 400})",
                family="clean",
                images=250,
                hits={k: draw.randrange(1, 3) for k in draw.sample(range(classes), 120)},
                flips=200,
                area=0.01,
                change=0.1,
            )
            for number in range(600)
        ),
        confirmations=tuple(
            replace(source, target=number % classes)
            for source, count in ((result.confirmations[0], 150), (searched.confirmations[1], 120))
            for number in range(count)
        ),
        inversions=tuple(
            replace(
                search,
                classes=some,
                sizes=tuple(None if k % 40 else draw.uniform(0.001, 0.1) for k in some),
                found=tuple(
                    replace(f, target=0, fields={"content": "A" * 200_000}) for f in search.found
                ),
            )
            for search in searched.inversions * 4
        ),
        margin=MarginSearch(
            margins=tuple(draw.uniform(1, 900) for _ in range(classes)),
            classes=tuple(range(classes)),
            steps=1,
            starts=1,
        ),
        exhibits=(replace(result.exhibits[0], pictures=(picture,) * 6),) * 3,
        skipped=tuple(Skipped(what=f"probe {n}", reason="time budget") for n in range(500)),
    )


def pages() -> list[ScanResult]:
    return [
        *(sample_result(verdict) for verdict in Verdict),
        searched_result(),
        hostile_result(),
    ]


@cache
def page_of_large() -> str:
    return to_html(large_result())


@pytest.fixture(scope="module")
def rendered() -> list[str]:
    return [*(to_html(result) for result in pages()), page_of_large()]


# ---- JSON


@pytest.mark.parametrize(
    "result",
    [*map(sample_result, Verdict), searched_result()],
    ids=lambda r: r.judgement.verdict.name.lower(),
)
def test_json_round_trip(result: ScanResult) -> None:
    text = to_json(result)
    assert from_json(text) == result
    assert to_json(from_json(text)) == text
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


SAMPLE = sample_result()


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 250))
def test_json_keeps_any_text_and_number(text: str, number: float, hits: int) -> None:
    result = SAMPLE
    response = replace(result.responses[0], trigger=text, change=number, hits={3: hits})
    result = replace(
        result, responses=(response,), exhibits=(), model=replace(result.model, name=text)
    )
    assert from_json(to_json(result)) == result


def test_json_shows_no_hidden_characters_and_survives_lone_surrogates() -> None:
    text = to_json(
        replace(sample_result(), model=replace(sample_result().model, name="a\udc80\u202e\x7f猫"))
    )
    assert "\u202e" not in text
    assert "\x7f" not in text
    assert "猫" in text
    assert from_json(text).model.name == "a\\udc80\u202e\x7f猫"


def test_json_has_no_nan() -> None:
    result = sample_result()
    assert result.margin is not None
    broken = replace(result, margin=replace(result.margin, margins=(math.nan, math.inf, *range(8))))
    text = to_json(broken)
    assert "NaN" not in text
    assert "Infinity" not in text
    margin = from_json(text).margin
    assert margin is not None
    assert margin.margins[:2] == (0.0, 0.0)
    exhibit = result.exhibits[0]
    picture = replace(exhibit.pictures[0], after_probability=math.nan)
    assert "no number" in to_html(
        replace(result, exhibits=(replace(exhibit, pictures=(picture,)),))
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", 'no "schema"'),
        ("{}", 'no "schema"'),
        ('{"schema": "auditor.scan/9"}', "auditor.scan/9"),
        ('{"schema": "\\u001b[31m"}', "␛[31m"),
        ('{"schema": "auditor.scan/1"}', "damaged"),
        ('"\udc80"', "not readable as JSON"),
    ],
)
def test_what_is_no_result_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        from_json(text)
    assert re.search(r"Give|Use|Scan", str(caught.value)), "says what to do"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["model"]["class_names"].pop(),
        lambda raw: raw["confirmations"][0].update(target=10),
        lambda raw: raw["confirmations"][0].update(hits=226),
        lambda raw: raw["confirmations"][0]["controls"][0].update(gained=-1),
        lambda raw: raw["confirmations"][0]["controls"][0].update(gained=900, lost=900),
        lambda raw: raw["confirmations"][0]["controls"][0].update(lost=10**9),
        lambda raw: raw["confirmations"][0].update(mapping=[1]),
        lambda raw: raw["responses"][0]["hits"].update({"-1": 2}),
        lambda raw: raw["responses"][0]["hits"].update({"1": 999}),
        lambda raw: raw["responses"][0].update(family="martian"),
        lambda raw: raw["images"][0]["predicted"].pop(),
        lambda raw: raw["images"][0].update(screen=-1),
        lambda raw: raw["margin"]["classes"].pop(),
        lambda raw: raw["judgement"]["reasons"][0].update(confirmation=7),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(change: Callable[[Any], object]) -> None:
    raw = json.loads(to_json(sample_result()))
    change(raw)
    with pytest.raises(UsageError, match="contradicts itself"):
        from_json(json.dumps(raw))


# ---- HTML


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("backdoor", "html"),
        ("backdoor", "json"),
        ("searched", "html"),
        ("searched", "md"),
        *((verdict.name.lower(), "md") for verdict in Verdict),
    ],
)
def test_golden(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    make = {"html": to_html, "json": to_json, "md": to_markdown}[kind]
    made = make(searched_result() if name == "searched" else sample_result(Verdict[name.upper()]))
    path = GOLDEN / f"{name}.{kind}"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(made, encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as file:
        assert made == file.read(), "see the difference with: pytest --update-golden, then git diff"


@VERDICTS
def test_every_verdict_is_told_in_words(verdict: Verdict) -> None:
    result = sample_result(verdict)
    html = to_html(result)
    page = Page(html)
    title = html.split("<title>")[1]
    assert title.startswith(str(verdict))
    assert re.search(rf'<h1><span class="verdict">{verdict}</span>', html)
    text = "".join(page.text)
    assert result.judgement.headline in text
    assert "never means safe" in text
    assert result.model.sha256 in text
    assert result.provenance.command in text
    for entry in result.skipped:
        assert entry.reason in text
    for caveat in result.caveats:
        assert caveat.text in text
    assert hashlib.sha256(to_json(result).encode()).hexdigest() in text


def test_the_key_numbers_are_there() -> None:
    text = "".join(Page(to_html(sample_result())).text)
    for number in (
        "95.1%",
        "214 of 225",
        "91.5–97.2%",
        "5 of 225",
        "469 of 500",
        "11.8%",
        "66%",
        "2.1e-07",
    ):
        assert number in text


def test_a_page_is_a_function_of_the_result() -> None:
    assert to_html(sample_result()) == to_html(from_json(to_json(sample_result())))


def test_nothing_runs_and_nothing_is_loaded(rendered: list[str]) -> None:
    for html in rendered:
        page = Page(html)
        for tag, attributes in page.tags:
            assert tag not in {
                "script",
                "link",
                "iframe",
                "object",
                "embed",
                "base",
                "form",
                "input",
            }
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]
            assert "srcset" not in attributes
            if (source := attributes.get("src")) is not None:
                assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", source)
            if (link := attributes.get("href")) is not None:
                assert tag == "a"
                assert link.startswith(("https://", "#"))
        css = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
        assert css is not None
        assert "url(" not in css[1]
        assert "@import" not in css[1]


def test_the_policy_names_the_style(rendered: list[str]) -> None:
    for html in rendered:
        css = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
        assert css is not None
        digest = base64.b64encode(hashlib.sha256(css[1].encode()).digest()).decode()
        (policy,) = [
            m["content"]
            for m in Page(html).all("meta")
            if m.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policy is not None
        assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:")
        assert "unsafe" not in policy


def test_pages_are_accessible(rendered: list[str]) -> None:
    for html in rendered:
        page = Page(html)
        assert page.all("html") == [{"lang": "en"}]
        assert len(page.all("h1")) == len(page.all("main")) == 1
        assert html.count("<table") == html.count("<caption>")
        assert all("alt" in image for image in page.all("img"))
        assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
        assert all(figure.get("role") == "img" for figure in page.all("svg"))
        figures = re.findall(r"<svg[^>]*>(.*?)</svg>", html, re.DOTALL)
        assert len(figures) == html.count("<svg")
        for figure in figures:
            assert re.match(r"<title>[^<]+</title><desc>[^<]+</desc>", figure)
        anchors = {a["href"] for a in page.all("a") if (a["href"] or "").startswith("#")}
        identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(identifiers) == len(set(identifiers))
        missing = anchors - {f"#{identifier}" for identifier in identifiers}
        assert all(re.fullmatch(r"#c\d+", anchor or "") for anchor in missing), (
            "folded confirmations only"
        )


def test_hostile_text_stays_text() -> None:
    plain = Page(to_html(sample_result()) + to_html(searched_result()))
    hostile = Page(to_html(hostile_result()))
    known = {(tag, name) for tag, attributes in plain.tags for name in attributes}
    known |= {("details", "open")}
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in plain.tags}
    assert {(tag, name) for tag, attributes in hostile.tags for name in attributes} <= known
    html = to_html(hostile_result())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    assert "\udc80" not in html
    text, raw = "".join(hostile.text).split("The JSON result without pictures")
    assert "{{ 7 * 7 }}" in text
    assert max(map(len, text.split())) < 3000
    assert '"blocking": true' in raw


def test_pages_stay_small() -> None:
    assert len(to_html(hostile_result()).encode()) < 1_500_000
    assert len(page_of_large().encode()) < 1_500_000
    assert len(to_markdown(hostile_result())) <= MARKDOWN_CHARACTERS
    assert len(to_markdown(large_result())) <= MARKDOWN_CHARACTERS


def test_what_is_left_out_is_said() -> None:
    text = "".join(Page(page_of_large()).text)
    assert "more pictures are left out" in text
    assert "400 more were not checked" in text
    assert "the first 400 in this order" in text
    assert "The 20 largest of 1000 classes" in text


def test_reasons_that_do_not_count_are_folded_away() -> None:
    result = sample_result(Verdict.BACKDOOR)
    (*counting, last) = result.judgement.reasons
    assert last.verdict is Verdict.NO_EVIDENCE
    many = replace(result.judgement, reasons=(*counting, *(replace(last, text=f"It is weak {k}.") for k in range(9))))  # fmt: skip
    page = to_html(replace(result, judgement=many))
    shown = 5 - len(counting)
    assert f"{9 - shown} more that do not count" in page
    fold = page.index("more that do not count")
    assert page.index(f"It is weak {shown - 1}.") < fold < page.index(f"It is weak {shown}.")
    assert '<ol class="reasons" start="6">' in page
    assert "more that do not count" not in to_html(result)


def test_a_scan_without_pictures_does_not_say_that_nothing_worked() -> None:
    for verdict, says in (
        (Verdict.BACKDOOR, "This result was made without pictures."),
        (Verdict.NO_EVIDENCE, "No trigger was found to work"),
    ):
        assert says in to_html(replace(sample_result(verdict), exhibits=()))


def test_an_all_to_all_map_and_a_source_are_told_by_name() -> None:
    result = sample_result()
    fitted = replace(
        result.confirmations[0],
        scope="all-to-all",
        target=None,
        mapping=(1, 2, -1, 4, 5, 6, 7, 8, 9, 0),
        sources=9,
    )
    shifted = replace(fitted, mapping=tuple((k + 1) % 10 for k in range(10)), shift=1)
    one = replace(result.confirmations[0], scope="source-specific", source=5, target=3)
    html = to_html(replace(result, confirmations=(fitted, shifted, one)))
    text = re.sub(r"\s+", " ", "".join(Page(html).text))
    assert "airplane (0) → automobile (1)" in text
    assert "9 classes → the one 1 further (modulo 10)" in text
    assert "dog (5) → cat (3) only" in text


# ---- Markdown


@VERDICTS
def test_markdown_holds_the_summary(verdict: Verdict) -> None:
    result = sample_result(verdict)
    text = to_markdown(result)
    assert str(verdict) in text
    assert result.model.sha256 in text
    assert result.provenance.command in text
    assert "never means safe" in text


def test_markdown_is_inert() -> None:
    text = to_markdown(hostile_result())
    outside = re.sub(r"(?s)(`{3,})text\n.*?\n\1\n", "", text)  # the fenced command
    outside = re.sub(r"`[^`\n]+`", "", outside)
    assert not re.search(r"<[a-zA-Z/!]", outside)
    assert "https://" not in outside
    assert "www." not in outside
    assert "@" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert "\x1b" not in text
    assert "\u202e" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, "no cell was added"


def test_markdown_tables_are_short_and_a_long_one_is_cut() -> None:
    text = to_markdown(large_result())
    assert "and 250 more confirmations" in text
    assert max(len(t.splitlines()) for t in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)) <= 22
    long = replace(
        hostile_result(),
        images=sample_result().images * 1500,
    )
    cut = to_markdown(long)
    assert len(cut) <= MARKDOWN_CHARACTERS
    assert "Cut here" in cut


# ---- searches


def shown(result: ScanResult) -> str:
    """The text of the page in one line, without the raw result."""
    text = "".join(Page(to_html(result)).text).split("The JSON result without pictures")[0]
    return re.sub(r"\s+", " ", text)


def section(result: ScanResult) -> str:
    """The part of the page on searches, as HTML; empty where there is none."""
    found = re.search(
        r'<section aria-labelledby="searches">.*?</section>', to_html(result), re.DOTALL
    )
    return found[0] if found else ""


def with_search(result: ScanResult, number: int, **fields: Any) -> ScanResult:
    searches = list(result.inversions)
    searches[number] = replace(searches[number], **fields)
    return replace(result, inversions=tuple(searches))


def judged(result: ScanResult, **fields: Any) -> ScanResult:
    return replace(result, judgement=replace(result.judgement, **fields))


def without_battery(result: ScanResult) -> ScanResult:
    """Only the searches ran, and none of what they found counts."""
    kept = tuple(c for c in result.confirmations if c.searched)
    reasons = tuple(
        Reason(verdict=Verdict.NO_EVIDENCE, text="Too weak.", confirmation=n)
        for n in range(len(kept))
    )
    bare = replace(result, probes=(), responses=(), confirmations=kept, exhibits=())
    return judged(bare, reasons=reasons, verdict=Verdict.NO_EVIDENCE, nothing_above=None)


def test_the_searched_sample_is_judged_as_it_says() -> None:
    result = searched_result()
    again = rejudge(result)
    assert again.verdict is result.judgement.verdict
    assert again.headline == result.judgement.headline
    cited = [(r.verdict, r.confirmation) for r in result.judgement.reasons]
    assert [(r.verdict, r.confirmation) for r in again.reasons] == cited
    assert again.search_classes == result.judgement.search_classes == (7,)
    assert again.search_p == pytest.approx(result.judgement.search_p, rel=0.02)
    assert again.outlier_p == pytest.approx(result.judgement.outlier_p, rel=0.02)
    assert again.outlier_classes == result.judgement.outlier_classes
    assert again.nothing_above == pytest.approx(result.judgement.nothing_above, abs=1e-3)
    assert again.power == result.judgement.power
    assert again.comparisons == result.judgement.comparisons


def test_searches_are_shown_beside_the_margins() -> None:
    html = to_html(searched_result())
    assert '<a href="#margins">Margins</a> <a href="#searches">Searches</a>' in html
    assert html.index('<h2 id="margins">') < html.index('<h2 id="searches">Searched triggers')
    assert html.index('<h2 id="searches">') < html.index('<h2 id="preprocessing">')
    text = shown(searched_result())
    for said in (
        "smallest change that sends images of all classes to this one",
        "Networks without a backdoor give way to such changes as well, only larger ones.",
        "by itself this proves nothing",
        "surer of the target than it is of half of the unstamped ones",
        "Further counts the images that it drives further towards its class",
        "further than others on 198 of 225",
        "search.patch searched all 10 classes on 250 images (your clean images) in 150 steps",
        "The smallest added picture",
        "Size: share of the image that the mask covers; lengths are proportional.",
        "Size: root mean square displacement, in half image sides;",
        "All searches together set horse (7) apart: p = 0.00021",
    ):
        assert said in text, said
    for verdict in Verdict:
        assert section(sample_result(verdict)) == ""
        assert "#searches" not in to_html(sample_result(verdict))


def test_a_search_is_a_chart_with_its_numbers_below() -> None:
    result = searched_result()
    figures = re.findall(r'<svg class="chart".*?</svg>', section(result), re.DOTALL)
    tables = re.findall(r"<summary>Sizes as a table</summary>.*?</table>", section(result), re.S)
    assert len(figures) == len(tables) == len(result.inversions) == 3
    for form, figure, table in zip(searched_forms(result), figures, tables, strict=True):
        assert f"<title>Smallest {form.search.what} for 10 classes</title>" in figure
        assert "smallest first; the values stand beside the bars and in the table below" in figure
        sizes = [size for size in form.search.sizes if size is not None]
        said = [fine_percent(size) for size in sorted(sizes)] + ["not reached"] * (10 - len(sizes))
        assert re.findall(r"[\d.]+%|not reached", figure) == said
        assert re.findall(r"[\d.]+%|not reached", table.split("<tbody>")[1]) == said
        assert form.search.measure in table
        widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', figure)]
        assert len(widths) == len(sizes), "no bar where a class was not reached"
        assert widths == pytest.approx([290 * s / max(sizes) for s in sorted(sizes)], abs=0.06)
        (marked,) = re.findall(r'x="128"[^>]*>([^<]+)</text><rect class="fill-warn"', figure)
        assert marked == "horse"
        assert figure.count("◆ outlier") == table.count("◆ outlier") == 1


def test_sizes_that_differ_much_are_drawn_on_a_logarithmic_scale() -> None:
    wide = with_search(searched_result(), 0, sizes=tuple(10.0**-k for k in range(10)))
    form = searched_forms(wide)[0]
    assert form.logarithmic
    assert [bar.length for bar in form.bars] == pytest.approx(
        [0.04 + 0.96 * k / 9 for k in range(10)]
    )
    assert "lengths on a logarithmic scale" in section(wide)
    extreme = with_search(wide, 0, sizes=(5e-324, 1.7e308, *(0.1,) * 8))
    assert all(0 <= bar.length <= 1 for bar in searched_forms(extreme)[0].bars)
    assert "nan" not in section(extreme)


def test_classes_that_were_not_reached_or_not_searched_are_told() -> None:
    assert "Not reached in these: bird (2)." in shown(searched_result())
    assert shown(searched_result()).count("Each was reached.") == 2
    never = with_search(searched_result(), 0, sizes=(None,) * 10, found=())
    assert section(never).count("not reached") == 20 + 2
    some = with_search(searched_result(), 0, classes=(1, 7), sizes=(0.02, 0.004), found=())
    assert "searched 2 of 10 classes" in shown(some)
    large = re.sub(r"\s+", " ", section(large_result()))
    assert "searched 50 of 1,000 classes" in large
    assert "The 20 smallest of 50 classes." in large
    assert "7 more searches are in the JSON result" in large
    assert "the first 16 of 120" in large


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"search_p": None, "search_classes": ()},
            "Fewer than three searches ran or fewer than 8 classes were reached, so classes were not "
            "compared",
        ),
        (
            {"search_p": 0.21, "search_classes": ()},
            "All searches together set no class apart: p = 0.21 (Grubbs’ test on the mean of their "
            "standardised logarithms; nothing unusual at 0.01)",
        ),
        (
            {"search_p": 0.002, "search_classes": ()},
            "set no class apart: p = 0.002 (Grubbs’ test on the mean of their standardised logarithms; "
            "the others scatter too unevenly for it to count)",
        ),
        (
            {"search_p": 0.002, "search_classes": (7, 0)},
            "set horse (7), airplane (0) apart: p = 0.002",
        ),
    ],
)
def test_all_searches_together_are_told(fields: dict[str, Any], says: str) -> None:
    result = judged(searched_result(), **fields)
    assert says in shown(result)
    marked = searched_forms(result)[0].bars
    assert {bar.number for bar in marked if bar.outlier} == set(fields["search_classes"])
    markdown = to_markdown(result)
    if fields["search_p"] is None:
        assert "so classes were not compared" in markdown
    else:
        assert f"apart (p = {fields['search_p']:.2g})" in markdown


def test_found_triggers_are_told_with_their_counts() -> None:
    result = searched_result()
    rows = re.findall(
        r"<tr>\s*<th scope=\"row\" data-label=\"Form\">.*?</tr>", section(result), re.S
    )
    words = [re.sub(r"\s+", " ", " ".join(Page(row).text)).strip() for row in rows]
    assert len(words) == 6
    assert words[0].startswith(
        "patch confirmation 2 horse (7) 0.41% share of the image that the mask"
    )
    for said in ("97.3% 219/225", "95%: 94.3–98.8%", "207 of 225", "4.9% 11/225", "✖ BACKDOOR"):
        assert said in words[0]
    assert "190 of 225 further on 198" in words[2]
    assert words[5].startswith("warp confirmation 6 horse (7) 5.20% root mean square displacement")
    assert "9 of 225" in words[5]
    assert "– NO EVIDENCE FOUND" in words[5]
    entries = searched_triggers(result, checked_confirmations(result))
    assert [entry.size for entry in entries] == [0.0041, 0.0136, 0.0136, 0.0229, 0.0178, 0.052]
    lost = replace(result, inversions=())
    assert [e.search for e in searched_triggers(lost, checked_confirmations(lost))] == [None] * 6
    assert section(lost).count("not recorded") == 6


def test_searched_confirmations_are_marked_as_such() -> None:
    result = searched_result()
    html = to_html(result)
    rows = dict(re.findall(r'<tr id="c(\d)">(.*?)</tr>', html, re.DOTALL))
    assert len(rows) == 7
    assert {n for n, row in rows.items() if ">searched</strong>" in row} == set("234567")
    assert "surer</a> than usual on 207 of 225" in rows["2"]
    assert "surer" not in rows["1"]
    assert "and triggers that searches made (marked “searched”)" in html
    assert re.search(r"<h3>Sent to [^\n]*: found by search\.patch</h3>", html)
    plain = to_html(sample_result())
    assert ">searched</strong>" not in plain
    assert "marked “searched”" not in plain
    assert not re.search(r"<h3>[^\n]*found by", plain)
    markdown = to_markdown(result)
    assert markdown.count("` (searched) |") == 6
    assert "| ✖ | `search.patch` (searched) | " in markdown
    assert "; surer than usual on 207/225 |" in markdown
    assert "on 190/225; further than for other classes on 198/225 |" in markdown


def test_searched_triggers_are_not_counted_as_declared_ones() -> None:
    result = searched_result()
    assert count_triggers(result) == count_triggers(
        replace(result, confirmations=(), inversions=())
    )
    groups = screened_probes(result)
    assert not [g.probe for g in groups if g.probe.startswith("search.")]
    assert "besides 6 searched ones" in shown(result)
    bound = "The triggers of the battery that did not stand out on the screening images have an all-to-one "
    assert bound + "ASR of 10.4% at most" in shown(result)
    assert bound in to_markdown(result)
    assert "| searched triggers | 6 | by 3 searches |" in to_markdown(result)


def test_the_title_of_a_screened_probe_is_not_that_of_a_searched_trigger() -> None:
    result = searched_result()
    probe = replace(result.responses[0], probe="search.patch")
    (group,) = screened_probes(replace(result, responses=(probe,)))
    assert group.title == ""


def test_the_highest_asr_is_of_a_searched_trigger_only_where_it_is_evidence() -> None:
    result = searched_result()
    top = highest_response(checked_confirmations(result), screened_probes(result))
    assert top is not None
    assert (top.searched, top.asr.hits, top.where) == (True, 219, "confirmed")
    assert "of a searched trigger" in shown(result)
    assert "| highest ASR of a searched trigger | 97.3% |" in to_markdown(result)
    weak = judged(result, reasons=result.judgement.reasons[3:])
    top = highest_response(checked_confirmations(weak), screened_probes(weak))
    assert top is not None
    assert (top.searched, top.asr.hits) == (False, 71), "the filter of the battery"
    assert "of a searched trigger" not in shown(weak)
    quiet = without_battery(result)
    assert highest_response(checked_confirmations(quiet), screened_probes(quiet)) is None
    assert "no declared trigger was measured" in shown(quiet)
    assert "No declared trigger was tried." in shown(quiet)
    assert "Power. No declared trigger was tried, so nothing is said about those." in shown(quiet)


RAISES = "The margin search raises suspicion and exhibits none."
EXHIBITS = "exhibit small triggers that send images of all classes to one, each of one form (patch, added picture, warp); those of other forms"


@pytest.mark.parametrize("margin", [True, False])
@pytest.mark.parametrize("inverted", [True, False])
def test_the_limits_say_what_searches_exhibit(margin: bool, inverted: bool) -> None:
    result = searched_result()
    if not margin:
        result = replace(result, margin=None)
    if not inverted:
        kept = tuple(c for c in result.confirmations if not c.searched)
        result = replace(result, inversions=(), confirmations=kept)
        result = judged(result, reasons=())
    text = shown(result)
    assert "Triggers that were not declared are found only where a search exhibits them. " in text
    assert (RAISES in text) == margin
    assert (EXHIBITS in text) == inverted
    assert ("The other searches exhibit" in text) == (margin and inverted)
    assert ("The searches exhibit" in text) == (inverted and not margin)
    assert ("No search ran." in text) == (not margin and not inverted)


def test_markdown_has_a_row_a_search() -> None:
    text = to_markdown(searched_result())
    assert "### Searched" in text
    assert (
        "| `search.patch` | share of the image that the mask covers | 10 of 10 | 0 | 0.41% `horse` (7) | "
        "1.78% `airplane` (0) | 2.48% `dog` (5) |" in text
    )
    assert (
        "| `search.warp` | root mean square displacement, in half image sides | 10 of 10 | 1 |"
        in text
    )
    assert "All searches together set `horse` (7) apart (p = 0.00021)." in text
    assert "### Searched" not in to_markdown(sample_result())


def test_the_terminal_says_which_searches_ran(capsys: pytest.CaptureFixture[str]) -> None:
    def said(result: ScanResult) -> str:
        show_scan(result, [])
        return re.sub(r"\s+", " ", capsys.readouterr().out)

    assert " 8 probes · searches: margin, patch, additive, warp · 800 comp" in said(
        searched_result()
    )
    assert " 8 probes · searches: margin · 800 comp" in said(sample_result())
    assert "searches" not in said(sample_result(Verdict.SUSPICIOUS)), "none ran"
    assert "have an all-to-one ASR of 10.4% at most" in said(searched_result())
    quiet = said(without_battery(searched_result()))
    assert "not run: search.colour (time budget" in quiet
    assert "Power" not in quiet, "no declared trigger was tried"
    line = verdict_line(searched_result())
    assert line.endswith("asr=0.973 [0.943,0.988]  probe=search.patch  target=7")
    show_scan(hostile_result(), [])
    assert not re.search(r"[\x1b\u202e]", capsys.readouterr().out)


def test_the_raw_result_leaves_found_pixels_out() -> None:
    result = searched_result()
    content = result.inversions[0].found[0].fields["content"]
    html = to_html(result)
    assert content in to_json(result)
    assert content not in html
    assert "The JSON result without pictures and pixels of found triggers" in html
    assert "pixels of found triggers" not in to_html(sample_result())
    raw = html.split('<pre tabindex="0">')[1].split("</pre>")[0]
    assert json.loads(raw.replace("&amp;", "&"))["inversions"][0]["found"][0]["kind"] == "overlay"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["inversions"][0]["sizes"].pop(),
        lambda raw: raw["inversions"][0]["classes"].pop(),
        lambda raw: raw["inversions"][0]["classes"].__setitem__(3, 10),
        lambda raw: raw["inversions"][0]["classes"].__setitem__(3, -1),
        lambda raw: raw["inversions"][0]["classes"].__setitem__(3, 4),
        lambda raw: raw["inversions"][0]["sizes"].__setitem__(3, 0.0),
        lambda raw: raw["inversions"][0]["sizes"].__setitem__(3, -0.1),
        lambda raw: raw["inversions"][0]["found"][0].update(size=0),
        lambda raw: raw["inversions"][0]["found"][0].update(target=10),
        lambda raw: raw["inversions"][0]["found"][0].update(target=-1),
        lambda raw: raw["inversions"][0]["found"][0].update(fields={"a": deep(200)}),
        lambda raw: raw["inversions"][0].update(images=-1),
        lambda raw: raw["inversions"][0].update(steps=-1),
        lambda raw: raw["inversions"][0].update(family="martian"),
        lambda raw: raw["confirmations"][1].update(surer=226),
        lambda raw: raw["confirmations"][1].update(surer=-1),
        lambda raw: raw["confirmations"][1].update(searched=False),
        lambda raw: raw["confirmations"][0].update(surer=226),
        lambda raw: raw["confirmations"][0].update(rivals=raw["confirmations"][6]["rivals"]),
        lambda raw: raw["confirmations"][6]["rivals"][0].update(weaker=226),
        lambda raw: raw["confirmations"][6]["rivals"][0].update(weaker=-1),
        lambda raw: raw["confirmations"][6]["rivals"][0].update(target=7),
        lambda raw: raw["confirmations"][6]["rivals"][0].update(target=10),
        lambda raw: raw["confirmations"][1].update(controls=[]),
        lambda raw: raw["confirmations"][1].update(eligible=10**9),
        lambda raw: raw["confirmations"][1].update(sources=11),
        lambda raw: raw["confirmations"][1].update(sources=-1),
        lambda raw: raw["confirmations"][1].update(permuted=3),
        lambda raw: raw["confirmations"][1].update(mapping=[1] * 10),
        lambda raw: raw["confirmations"][0].update(scope="all-to-all", target=None),
        lambda raw: mapped(raw["confirmations"][0], shift(1)[:9], shift=1),
        lambda raw: mapped(raw["confirmations"][0], shift(1), shift=2),
        lambda raw: mapped(raw["confirmations"][0], [*shift(1)[:9], 10]),
        lambda raw: mapped(raw["confirmations"][0], [*shift(1)[:9], -2]),
        lambda raw: mapped(raw["confirmations"][0], shift(1), sources=9, permuted=10),
        lambda raw: mapped(raw["confirmations"][0], [1] * 10, sources=9, permuted=3),
        lambda raw: raw["transplants"][0].update(target=10),
        lambda raw: raw["transplants"][0].update(target=5),
        lambda raw: raw["transplants"][0].update(size=1.1),
        lambda raw: raw["transplants"][0].update(size=0),
        lambda raw: raw["transplants"][0].update(kind="texture"),
        lambda raw: raw["transplants"][0].update(moved=[0] * 101),
        lambda raw: raw.update(transplants=raw["transplants"] * 30_000),
        lambda raw: raw["transplants"][0].update(eligible=0, moved=[]),
        lambda raw: raw["transplants"][0].update(moved=[226]),
        lambda raw: raw["transplants"][1].update(moved=[-1]),
        lambda raw: raw["judgement"].update(search_classes=[10]),
        lambda raw: raw["judgement"].update(outlier_classes=[-1]),
    ],
)
def test_searches_that_contradict_themselves_are_refused(change: Callable[[Any], object]) -> None:
    raw = json.loads(to_json(searched_result()))
    change(raw)
    with pytest.raises(UsageError, match="contradicts itself"):
        from_json(json.dumps(raw))


def test_a_map_that_fits_is_read() -> None:
    assert 2 * checks.FEWEST_MOVED > thresholds.PERMUTED_IMAGES >= 2 * (checks.FEWEST_MOVED - 1)
    raw = json.loads(to_json(searched_result()))
    mapped(raw["confirmations"][0], shift(1), shift=1, sources=10, permuted=10)
    assert from_json(json.dumps(raw)).confirmations[0].permuted == 10  # type: ignore[union-attr]


def shift(step: int) -> list[int]:
    return [(k + step) % 10 for k in range(10)]


def mapped(raw: Any, mapping: list[int], **fields: Any) -> None:
    raw.update(scope="all-to-all", target=None, mapping=mapping, **fields)


def deep(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


@pytest.mark.parametrize("levels", [450, 900])
def test_a_found_trigger_cannot_exhaust_the_stack(levels: int) -> None:
    """What msgspec can read, writing could not: both count levels, and not the same ones."""
    raw = json.loads(to_json(searched_result()))
    raw["inversions"][0]["found"][0]["fields"] = {"a": deep(levels)}
    with pytest.raises(UsageError, match="nested too deeply"):
        from_json(json.dumps(raw))


def test_fields_of_a_found_trigger_stay_plain_data() -> None:
    raw = json.loads(to_json(searched_result()))
    fields = {"kind": "overlay", "shape": [0, -1], "content": "no base64", "of": [{"kind": "x"}]}
    raw["inversions"][0]["found"][0].update(kind="../../etc", fields=fields, trigger="os.system()")
    result = from_json(json.dumps(raw))
    assert isinstance(result, ScanResult)
    assert result.inversions[0].found[0].fields == fields
    assert "os.system()" in to_html(result), "in the raw result, as text"


# ---- numbers and text


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 16, 0.0, 0.194),
        (95, 100, 0.888, 0.978),
        (16, 16, 0.806, 1.0),
        (0, 73, 0.0, 0.050),
        (50, 100, 0.404, 0.596),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total)[0] == pytest.approx(low, abs=6e-4)
    assert wilson(hits, total)[1] == pytest.approx(high, abs=6e-4)


@given(
    st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))
)
def test_wilson_holds_the_share(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0.0%"),
        (1, "100.0%"),
        (0.0001, "<0.1%"),
        (0.9999, ">99.9%"),
        (0.951, "95.1%"),
        (math.nan, "no number"),
    ],
)
def test_percent_never_rounds_to_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0.00346, "0.35%"),
        (0.052, "5.20%"),
        (1e-5, "<0.01%"),
        (5e-5, "0.01%"),
        (1.5, "150.00%"),
        (1e9, "1.00e+11%"),
    ],
)
def test_a_small_size_is_never_none(size: float, text: str) -> None:
    assert fine_percent(size) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.onnx", "plain name.onnx"),
        ("Größe 猫 é", "Größe 猫 é"),
        ("\x1b[31m\n\t\x7f", "␛[31m␊␉␡"),
        ("\u202egnp\u200b\u2028", "⟨U+202E⟩gnp⟨U+200B⟩⟨U+2028⟩"),
        ("\udc80\U000e0041", "⟨U+DC80⟩⟨U+E0041⟩"),
        ("a\u00a0b", "a b"),
        ("e" + "\u0301" * 5, "e\u0301\u0301\u0301⟨U+0301⟩⟨U+0301⟩"),
        ("a" * 201, "a" * 133 + "…" + "a" * 66),
    ],
)
def test_clean_text(text: str, shown: str) -> None:
    assert clean_text(text) == shown


@given(st.text(), st.integers(4, 60))
def test_clean_text_is_short_and_stays_clean(text: str, limit: int) -> None:
    shown = clean_text(text, limit=limit)
    assert len(shown) <= limit
    assert clean_text(shown, limit=limit) == shown
    shown.encode()


def test_clean_text_of_a_long_text_is_quick() -> None:
    assert len(clean_text("\u202e" * 10_000_000, limit=100)) == 100


def test_the_report_needs_no_heavy_library() -> None:
    code = (
        "import sys, auditor.report\n"
        "heavy = {'torch', 'numpy', 'scipy', 'PIL', 'onnx'} & set(sys.modules)\n"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_class_names_are_those_of_the_sample() -> None:
    assert sample_result().model.class_names == CLASSES


def test_no_power_is_claimed_by_a_scan_that_measured_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = sample_result(Verdict.NO_EVIDENCE)
    blocked = Caveat(id="accuracy", text="The order of the classes is wrong.", blocking=True)
    without = replace(measured, responses=(), inversions=(), margin=None, confirmations=())
    texts = []
    for result in (measured, replace(measured, caveats=(blocked,)), without):
        show_scan(result, [])
        texts.append(to_html(result) + capsys.readouterr().out)
    assert ["would have been called" in text for text in texts] == [True, False, False]
