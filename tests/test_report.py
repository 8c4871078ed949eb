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
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import UsageError
from auditor.report import (
    MARKDOWN_CHARACTERS,
    from_json,
    percent,
    to_html,
    to_json,
    to_markdown,
    wilson,
)
from auditor.results import Caveat, MarginSearch, Response, ScanResult, Skipped, Verdict
from auditor.text import clean_text
from tests.sample_result import CLASSES, sample_result

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
    result = sample_result(class_names=bad)
    everything = "".join(bad)
    return replace(
        result,
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
            replace(c, trigger=everything, title=bad[1]) for c in result.confirmations
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
    result = sample_result()
    draw = random.Random(0)  # noqa: S311
    classes = 1000
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
            replace(result.confirmations[0], target=number % classes) for number in range(150)
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
    return [*(sample_result(verdict) for verdict in Verdict), hostile_result(), large_result()]


@pytest.fixture(scope="module")
def rendered() -> list[str]:
    return [to_html(result) for result in pages()]


# ---- JSON


@VERDICTS
def test_json_round_trip(verdict: Verdict) -> None:
    result = sample_result(verdict)
    text = to_json(result)
    assert from_json(text) == result
    assert to_json(from_json(text)) == text
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 250))
def test_json_keeps_any_text_and_number(text: str, number: float, hits: int) -> None:
    result = sample_result()
    response = replace(result.responses[0], trigger=text, change=number, hits={3: hits})
    result = replace(result, responses=(response,), model=replace(result.model, name=text))
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
    ("verdict", "kind"),
    [(Verdict.BACKDOOR, "html"), (Verdict.BACKDOOR, "json"), *((v, "md") for v in Verdict)],
)
def test_golden(verdict: Verdict, kind: str, request: pytest.FixtureRequest) -> None:
    make = {"html": to_html, "json": to_json, "md": to_markdown}[kind]
    made = make(sample_result(verdict))
    path = GOLDEN / f"{verdict.name.lower()}.{kind}"
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
    plain, hostile = Page(to_html(sample_result())), Page(to_html(hostile_result()))
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


@pytest.mark.parametrize("make", [hostile_result, large_result])
def test_pages_stay_small(make: Callable[[], ScanResult]) -> None:
    html = to_html(make())
    assert len(html.encode()) < 1_500_000
    assert len(to_markdown(make())) <= MARKDOWN_CHARACTERS


def test_what_is_left_out_is_said() -> None:
    text = "".join(Page(to_html(large_result())).text)
    assert "more pictures are left out" in text
    assert "400 more were not checked" in text
    assert "the first 400 in this order" in text
    assert "The 20 largest of 1000 classes" in text


def test_an_all_to_all_map_and_a_source_are_told_by_name() -> None:
    result = sample_result()
    fitted = replace(
        result.confirmations[0],
        scope="all-to-all",
        target=None,
        mapping=(1, 2, -1, 4, 5, 6, 7, 8, 9, 0),
    )
    shifted = replace(fitted, mapping=tuple((k + 1) % 10 for k in range(10)), shift=1)
    one = replace(result.confirmations[0], scope="source-specific", source=5, target=3)
    html = to_html(replace(result, confirmations=(fitted, shifted, one)))
    text = re.sub(r"\s+", " ", "".join(Page(html).text))
    assert "airplane (0) → automobile (1)" in text
    assert "every class → the one 1 further (modulo 10)" in text
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
    assert "and 130 more confirmations" in text
    assert max(len(t.splitlines()) for t in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)) <= 22
    long = replace(
        hostile_result(),
        images=sample_result().images * 1500,
    )
    cut = to_markdown(long)
    assert len(cut) <= MARKDOWN_CHARACTERS
    assert "Cut here" in cut


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
