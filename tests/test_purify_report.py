"""The report of a purification: every number from the record, cautions beside it, hostile text inert."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from auditor.errors import UsageError
from auditor.report import from_json, percent, to_html, to_json, to_markdown, wilson
from auditor.report import purify_view as view
from auditor.report.markdown import MARKDOWN_CHARACTERS, inert
from auditor.report.numbers import Rate
from auditor.results.facts import Caveat, Counts, Skipped, Verdict
from auditor.results.purify import ChangedTensor, Confusion, MaskLayer, PurifyResult, Round
from auditor.statistics import difference_bound
from auditor.terminal.purify import goals_line, show_purify
from tests.sample_purify import (
    VARIANTS,
    compared,
    mask_layers,
    missed,
    sample_embedding,
    sample_purify,
    sized,
    transformer,
    unlabelled,
    untouched,
    untouched_but_missed,
    weights,
    with_names,
)
from tests.sample_result import sample_result
from tests.test_report import HOSTILE, Page

GOLDEN = Path(__file__).parent / "golden"
EVERY = pytest.mark.parametrize("name", VARIANTS)
pytestmark = pytest.mark.usefixtures("figures_once")


def hostile() -> PurifyResult:
    """Every text of a purification is hostile."""
    bad, everything = HOSTILE, "".join(HOSTILE)
    result = with_names(sample_purify(), bad)
    assert result.method is not None
    assert result.embedding is not None
    assert result.stress is not None
    assert result.written is not None
    assert result.after is not None
    stage = replace(result.method.stages[0], settings={bad[0]: bad[1]}, outcome=everything)
    judgement = replace(result.after.judgement, headline=everything)
    return replace(
        result,
        model=replace(result.model, name=bad[0], format=bad[1], architecture=bad[3], sha256=bad[2]),
        after=replace(result.after, judgement=judgement),
        before=replace(
            result.before,
            responses=tuple(
                replace(r, probe=bad[n % 9], trigger=bad[n % 10])
                for n, r in enumerate(result.before.responses)
            ),
            skipped=tuple(Skipped(what=text, reason=text) for text in bad),
        ),
        fit=replace(result.fit, digest=bad[0]),
        method=replace(
            result.method, name=bad[1], title=bad[0], source=everything, stages=(stage,) * 3,
            settings={text: text for text in bad},
        ),
        outcomes=tuple(
            replace(result.outcomes[n % 2], probe=text, title=text, trigger=everything)
            for n, text in enumerate(bad)
        ),
        masks=tuple(replace(m, layer=bad[n % 10], kind=bad[n % 3]) for n, m in enumerate(result.masks)),
        channels=tuple(replace(c, layer=bad[n % 10]) for n, c in enumerate(result.channels)),
        tensors=tuple(ChangedTensor(name=text, elements=3, change=0.1) for text in bad),
        exhibits=tuple(
            replace(
                e, probe=bad[1], trigger=everything, difference_png='x" onerror="alert(1)',
                cases=(*e.cases, replace(e.cases[0], clean_png="javascript:alert(1)")),
            )
            for e in result.exhibits
        ),
        embedding=replace(result.embedding, features=bad[0], trigger=everything),
        stress=replace(result.stress, probe=bad[1], trigger=everything),
        goals=replace(result.goals, missed=bad),
        written=replace(result.written, name=bad[4], sha256=bad[0], format=bad[3]),
        caveats=tuple(Caveat(id=text, text=text, blocking=True) for text in bad),
        provenance=replace(
            result.provenance, command=everything, device=bad[0], started=bad[3],
            versions={text: text for text in bad}, options={text: text for text in bad},
        ),
    )  # fmt: skip


@cache
def large() -> PurifyResult:
    """1000 classes, 500 layers, 300 triggers, 3000 points."""
    result, classes = sample_purify(), 1000
    names = tuple(f"n{number:08d} a rather long name of a class" for number in range(classes))
    members = (1,) * classes

    def grown(scan: Any) -> Any:
        images = tuple(
            replace(f, screen_members=members, confirm_members=members, predicted=members)
            for f in scan.images
        )
        model = replace(scan.model, classes=classes, class_names=names)
        return replace(scan, images=images, model=model, responses=scan.responses * 5)

    row = [[0] * classes for _ in range(classes)]
    for k in range(classes):
        row[k][k] = 1
    moved = [list(r) for r in row]
    for k in range(0, classes, 3):
        moved[k][k], moved[k][(k + 1) % classes] = 0, 1
    right = sum(moved[k][k] for k in range(classes))
    return replace(
        result,
        model=replace(result.model, classes=classes, class_names=names),
        fit=replace(result.fit, images=classes, members=members),
        judge=replace(result.judge, images=classes, members=members),
        evidence=grown(result.evidence),
        before=grown(result.before),
        after=grown(result.after),
        accuracy=Counts(before=classes, after=right),
        outcomes=tuple(
            replace(result.outcomes[n % 2], target=n, trigger="x" * 5000) for n in range(300)
        ),
        masks=mask_layers(500),
        channels=result.channels * 30,
        tensors=tuple(ChangedTensor(name="w" * 300, elements=9, change=0.5) for _ in range(900)),
        embedding=sample_embedding(3000),
        confusion=Confusion(before=tuple(map(tuple, row)), after=tuple(map(tuple, moved))),
        caveats=tuple(Caveat(id="x", text="y" * 2000) for _ in range(50)),
    )


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    made = {name: page_of(make()) for name, make in VARIANTS.items()}
    return made | {"hostile": to_html(hostile()), "large": to_html(large())}


PAGES: dict[str, str] = {}


def page_of(result: PurifyResult) -> str:
    """The page, drawn once: a page of many figures takes seconds."""
    key = to_json(result)
    if key not in PAGES:
        PAGES[key] = to_html(result)
    return PAGES[key]


@lru_cache(maxsize=64)
def parsed(html: str) -> Page:
    return Page(html)


def text_of(result: PurifyResult) -> str:
    return re.sub(r"\s+", " ", "".join(parsed(page_of(result)).text))


def few_figures(result: PurifyResult) -> PurifyResult:
    """The same result with fewer figures, where only numbers are looked at."""
    return replace(result, masks=result.masks[:1], embedding=sample_embedding(30), channels=())


# ---- JSON


@EVERY
def test_json_round_trip(name: str) -> None:
    result = VARIANTS[name]()
    text = to_json(result)
    assert from_json(text) == result
    assert to_json(from_json(text)) == text


def first(raw: Any, name: str) -> Any:
    return raw[name][0]


def exchange(rows: list[list[int]]) -> None:
    """Count a confused image of one class as one of another."""
    confused = next(k for k, row in enumerate(rows) if any(row[:k] + row[k + 1 :]))
    cell = next(n for n, count in enumerate(rows[confused]) if count and n != confused)
    other = (confused + 1) % len(rows)
    rows[confused][cell] -= 1
    rows[other][(other + 1) % len(rows)] += 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["model"]["class_names"].pop(), "9 class names for 10 classes"),
        (lambda r: r["fit"].update(images=-1), "impossible number of fit images"),
        (lambda r: r["judge"]["members"].pop(), "not counted for every class"),
        (lambda r: r["judge"].update(images=201), "do not add up"),
        (lambda r: r["accuracy"].update(after=201), "more rightly classified"),
        (lambda r: r["accuracy"].update(baseline=-1), "more rightly classified"),
        (lambda r: first(r, "outcomes")["hits"].update(after=181), "more hits than images"),
        (lambda r: first(r, "outcomes")["hits"].update(baseline=999), "more hits than images"),
        (lambda r: first(r, "outcomes").update(eligible=201), "more hits than images"),
        (lambda r: first(r, "outcomes").update(target=10), "class 10 of 10"),
        (lambda r: first(r, "outcomes").update(mapping=[1, 2]), "does not cover"),
        (lambda r: first(r, "outcomes").update(mapping=[10] * 10), "does not cover"),
        (lambda r: first(r, "masks")["histogram"].clear(), "counts nothing"),
        (lambda r: first(r, "masks").update(channels=1), "does not count every channel"),
        (lambda r: first(r, "masks").update(near_zero=65), "more masks near 0"),
        (lambda r: first(r, "masks")["histogram"].__setitem__(0, -3), "counts nothing"),
        (lambda r: first(r, "channels").update(channel=-1), "does not have"),
        (lambda r: r["method"]["stages"][0]["checks"][0].update(asr=1.5), "no share"),
        (lambda r: r["method"]["stages"][0].update(steps=-1), "fewer than no steps"),
        (lambda r: first(r, "exhibits").update(difference_png="AAAA"), "no PNG"),
        (lambda r: r["exhibits"][0]["cases"][0].update(clean_png="x"), "no PNG"),
        (lambda r: r["exhibits"][0]["cases"][0].update(stamped_after=10), "class 10"),
        (lambda r: r["exhibits"][0]["cases"][0].update(clean_after_probability=7), "probability"),
        (lambda r: r["embedding"]["points"][0].update(label=-1), "class -1"),
        (lambda r: r["confusion"]["after"].pop(), "does not cover the classes"),
        (lambda r: r["confusion"]["after"][3].pop(), "does not cover the classes"),
        (lambda r: r["confusion"]["before"][0].__setitem__(1, 44), "counts more than every image"),
        (lambda r: first(r, "outcomes").update(eligible=20, hits={"before": 1, "after": 0}), "the images of its classes"),
        (lambda r: first(r, "outcomes").update(target=None), "without a target"),
        (lambda r: first(r, "outcomes").update(unstamped=181), "more confused images than images"),
        (lambda r: first(r, "outcomes").update(unstamped=97), "disagrees with what is sent somewhere"),
        (lambda r: first(r, "outcomes").update(anyway=1), "more confused images than images"),
        (lambda r: r["model"].update(output="logit"), "other than two classes"),
        (lambda r: exchange(r["confusion"]["after"]), "more images of a class"),
        (lambda r: r["confusion"].update(lost=0), "lost and gained that disagree"),
        (lambda r: r["confusion"].update(lost=-1), "lost and gained that disagree"),
        (lambda r: r["accuracy"].update(after=100), "disagrees with the accuracy"),
        (lambda r: r["stress"]["rows"][0].update(hits_after=181), "stress test"),
        (lambda r: r["stress"]["rows"][0].update(correct_after=201), "stress test"),
        (lambda r: r["goals"].update(max_asr=12), "no share"),
        (lambda r: r["written"].update(bytes=-4), "impossible written file"),
        (lambda r: r["before"].update(schema="auditor.scan/0"), "another version"),
        (lambda r: r["after"]["confirmations"] or r["after"]["images"][0]["predicted"].pop(), 'scan "after"'),
        (lambda r: r["evidence"]["confirmations"][0].update(hits=999), 'scan "evidence"'),
        (lambda r: r["before"]["responses"][0]["hits"].update({"1": 999}), 'scan "before"'),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused(change: Callable[[Any], object], says: str) -> None:
    raw = json.loads(to_json(sample_purify()))
    change(raw)
    with pytest.raises(UsageError, match="contradicts itself") as caught:
        from_json(json.dumps(raw))
    assert says in str(caught.value)
    assert "Purify again" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c[0].update(hits=[1]), "not measured on every trigger"),
        (lambda c: c[1].update(hits=[181, 0]), "method with more hits than images"),
        (lambda c: c[1].update(hits=[-1, 0]), "method with more hits than images"),
        (lambda c: c[2].update(correct=201), "method with more rightly classified"),
        (lambda c: c[0].update(retuned=181), "stress test of a method"),
        (lambda c: c[0].update(trained=-1), "numbers that cannot be"),
        (lambda c: c[0]["choosing"].update(asr=1.5), "numbers that cannot be"),
        (lambda c: c[0].update(trained=10**400), "numbers that cannot be"),
        (lambda c: c[1].update(hits=[170, 3]), "said to meet goals"),
        (lambda c: c[2].update(missed=[]), "said to meet goals"),
        (lambda c: c[1].update(missed=["A goal."]), "said to meet goals"),
        (lambda c: c[2].update(hits=[1, 2], correct=187), "said to meet goals"),
        (lambda c: c.extend(c * 30), "more methods"),
        (lambda c: c[0].update(recognised=[1]), "rightly classified images a class"),
        (lambda c: c[0].update(recognised=[c[0]["correct"]] + [0] * 9), "images a class"),
    ],
)
def test_a_contradiction_of_methods_is_refused(change: Callable[[Any], object], says: str) -> None:
    raw = json.loads(to_json(compared()))
    assert from_json(json.dumps(raw)) == compared()
    change(raw["contenders"])
    with pytest.raises(UsageError, match="contradicts itself") as caught:
        from_json(json.dumps(raw))
    assert says in str(caught.value)


def test_a_result_without_pictures_does_not_say_that_nothing_worked() -> None:
    bare = page_of(replace(sample_purify(), exhibits=()))
    assert "This result was made without pictures." in bare
    assert "No known trigger worked" not in bare


def test_methods_are_shown_side_by_side() -> None:
    result = compared()
    page, text, screen = page_of(result), to_markdown(result), shown(result)
    for place in (page, screen):
        assert place.index("nft") < place.index("fst")
    for made in (text, screen):
        assert "3 methods were compared, and 2 of them meet the goals" in made
        assert "11,173,962" in made
        assert "the budget of" in made
    assert "3 methods were compared, and 2 of them meet the goals" in page
    assert "fine-&lt;b&gt;pruning" in page
    assert "the budget of &lt;600&gt; s was spent" in page
    assert page.count("CHOSEN") == 1
    assert "75 fit images which no method was fitted on" in page
    few = page_of(replace(result, kept_back=0))
    assert "too few to keep some back" in few
    assert "no method was fitted on" not in few
    blind = replace(result, outcomes=tuple(replace(o, origin="judge") for o in result.outcomes))
    assert "No trigger is known, so those that do stay in the order" in page_of(blind)
    lost = tuple(replace(c, missed=("ACC is lower by 9 points.",)) for c in result.contenders)
    none = page_of(
        replace(result, contenders=lost, goals=replace(result.goals, missed=lost[0].missed))
    )
    assert "3 methods were compared, and none of them meets the goals" in none
    assert "Among them, the order is that of 75 fit images" in none
    section = page[page.index('id="methods"') : page.index('id="purifier"')]
    (judged,) = (o.hits.after for o in result.outcomes if o.origin == "judge")
    for hits in (*result.contenders[1].hits, 40, 90, judged):  # counts, and shares of the 180
        assert f"{hits}/180" in section
        assert percent(hits / 180) in section
    assert "44/180" in section, "the stress test's"
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert "50.0% (90/180)" in rows["fine-<b>pruning"]
    assert "| missed |" in rows["fine-<b>pruning"]
    assert "**chosen**" in rows["nft"]
    assert "Methods compared" not in page_of(sample_purify())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    text = to_json(sample_purify()).replace('"max_asr": 0.1', f'"max_asr": {number}')
    assert number in text
    with pytest.raises(UsageError):
        from_json(text)


def test_a_damaged_one_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"damaged.*Purify again"):
        from_json('{"schema": "auditor.purify/1"}')


# ---- the page


def figures_left_out(html: str) -> str:
    """Vega draws the figures; what it makes may differ between its versions, and has tests of its own."""
    return re.sub(
        r'(<svg [^>]*class="vega"[^>]*><title>[^<]*</title><desc>[^<]*</desc>).*?</svg>', r"\1…</svg>", html
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [("met", "html"), ("untouched", "html"), *((n, "md") for n in ("met", "missed", "untouched"))],
)
def test_golden(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    result = VARIANTS[name]()
    made = figures_left_out(page_of(result)) if kind == "html" else to_markdown(result)
    path = GOLDEN / f"purify_{name}.{kind}"
    if request.config.getoption("--update-golden"):
        path.write_text(made, encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as file:
        assert made == file.read(), "see the difference with: pytest --update-golden, then git diff"


@pytest.mark.parametrize("make", [sample_purify, untouched])
def test_the_page_is_a_function_of_the_result(
    make: Callable[[], PurifyResult], figures_once: dict[str, str]
) -> None:
    page = page_of(make())
    figures_once.clear()
    again = from_json(to_json(make()))
    assert to_html(again) == page


@EVERY
def test_the_ending_is_told_in_words(name: str, rendered: dict[str, str]) -> None:
    result = VARIANTS[name]()
    kind = view.ending(result)
    html = rendered[name]
    assert html.split("<title>")[1].startswith(str(kind))
    assert f'<h1><span class="verdict">{kind}</span>' in html
    text = re.sub(r"\s+", " ", "".join(parsed(html).text))
    assert "never means safe" in text
    for said in (result.model.sha256, result.fit.digest, result.judge.digest, result.provenance.command):  # fmt: skip
        assert said in text
    for sentence in result.goals.missed:
        assert sentence in text
    assert hashlib.sha256(to_json(result).encode()).hexdigest() in text


def test_endings() -> None:
    assert view.ending(sample_purify()) is view.Ending.MET
    assert view.ending(missed()) is view.Ending.MISSED
    assert view.ending(untouched()) is view.Ending.NOTHING
    assert view.ending(untouched_but_missed()) is view.Ending.MISSED


def test_the_cautions_stand_beside_the_numbers() -> None:
    html = page_of(sample_purify())
    card = html.split('<div class="card ')[1]
    assert view.NO_PROOF.replace("'", "&#39;") in card
    assert view.NEVER_SEEN in card
    table = html.split('id="outcomes"')[1].split("<table")[0]
    assert view.NO_PROOF.replace("'", "&#39;") in table
    found = replace(few_figures(sample_purify()), outcomes=sample_purify().outcomes[:1])
    assert view.NO_PROOF in text_of(found)
    assert view.NEVER_SEEN not in text_of(found)
    for make in (untouched, untouched_but_missed):
        card = page_of(make()).split('<div class="card ')[1]
        assert "stopped working" not in card


@pytest.mark.parametrize("after", [0, 9, 90, 180])
def test_rates_follow_the_counts(after: int) -> None:
    result = few_figures(sample_purify())
    judged = replace(result.outcomes[1], hits=Counts(before=179, after=after, baseline=60))
    text = text_of(replace(result, outcomes=(judged,)))
    low, high = (percent(value) for value in wilson(after, 180))
    assert f"{after}/180" in text
    assert f"{low.removesuffix('%')}–{high}" in text
    assert percent(after / 180) in text
    assert view.difference(view.Rate(179, 180), view.Rate(after, 180)) in text


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda r: replace(r, accuracy=Counts(before=187, after=151, baseline=111)), ["75.5%", "151 of 200", "−18.0 points", "55.5%"]),
        (lambda r: replace(r, goals=replace(r.goals, max_asr=0.123, max_acc_drop=0.047)), ["12.3%", "4.7 points"]),
        (lambda r: replace(r, written=replace(r.written, largest_difference=0.0123, tensors=71)), ["0.0123", "71 of its tensors"]),
        (lambda r: replace(r, stress=replace(r.stress, epochs=77, lr=0.25)), ["77 epochs", "rate 0.25"]),
        (lambda r: replace(r, embedding=replace(r.embedding, perplexity=12.5)), ["perplexity 12.5"]),
        (lambda r: replace(r, method=replace(r.method, seconds=3725)), ["1 h 2 min"]),
        (lambda r: replace(r, method=replace(r.method, stages=(replace(r.method.stages[0], outcome="Odd."),))), ["Odd."]),
        (lambda r: replace(r, masks=mask_layers(2)), ["Of 320 masks in 2 layers"]),
        (lambda r: replace(r, judge=replace(r.judge, digest="12ab" * 16)), ["12ab" * 16]),
        (lambda r: replace(r, provenance=replace(r.provenance, seed=4711)), ["4711"]),
    ],
)  # fmt: skip
def test_what_is_shown_is_in_the_record(
    change: Callable[[PurifyResult], PurifyResult], shown: list[str]
) -> None:
    result = few_figures(sample_purify())
    before, after = text_of(result), text_of(change(result))
    for text in shown:
        assert text in after
        assert text not in before


def test_the_highest_asr_may_be_another_trigger_afterwards() -> None:
    result = sample_purify()
    found, judged = result.outcomes
    outcomes = (replace(found, hits=Counts(before=180, after=2)), replace(judged, hits=Counts(before=100, after=9)))  # fmt: skip
    seen = view.outcomes(replace(result, outcomes=outcomes))
    before, after = view.highest(seen, "before"), view.highest(seen, "after")
    assert before is not None
    assert after is not None
    assert (before[1].number, after[1].number) == (1, 2)
    assert view.highest(seen, "baseline") is None


def test_every_probe_is_compared_with_itself() -> None:
    changes = {row.probe: row for row in view.probe_changes(sample_purify())}
    checker = changes["patch.checker"]
    assert checker.before.asr.hits == 84
    assert checker.after is not None
    assert checker.after.asr.hits == 2
    assert all(row.after is None for row in view.probe_changes(untouched()))


def test_no_file_is_said_plainly() -> None:
    assert "No file was written, because a goal was missed." in text_of(missed())
    assert "No file was written, because nothing was changed." in text_of(untouched())
    bare = replace(few_figures(sample_purify()), written=None)
    assert "No file was written, although the goals are met." in text_of(bare)
    anyway = replace(few_figures(missed()), written=sample_purify().written)
    assert "It was written although a goal was missed." in text_of(anyway)


def test_an_untouched_model_is_said_plainly() -> None:
    assert "Nothing to remove; the model was not touched." in text_of(untouched())
    assert "Not run. auditor purify --stress" in text_of(untouched())


def test_masks_or_weights_are_said_plainly() -> None:
    assert "Masks only." in text_of(sample_purify())
    assert "Weights. No masks are part of the result; 40 tensors" in text_of(weights())
    both = replace(few_figures(weights()), masks=mask_layers(2))
    assert "Masks and weights." in text_of(both)


def test_without_labels_it_is_no_accuracy() -> None:
    text = text_of(unlabelled())
    assert "Agreement with the suspect" in text
    assert "not accuracy" in text
    assert "Clean accuracy (ACC)" not in text
    assert "agreement=1.000->0.945" in goals_line(unlabelled())
    assert "| agreement with the suspect |" in to_markdown(unlabelled())


@pytest.mark.parametrize(("layers", "left_out"), [(1, 0), (19, 0), (25, 1), (60, 36)])
def test_the_most_changed_layers_have_a_histogram(layers: int, left_out: int) -> None:
    html = page_of(sized(layers))
    assert html.count("<title>Masks of ") == layers - left_out
    text = "".join(parsed(html).text)
    said = f"The 24 most changed of {layers} layers, in the order of the network; {left_out} are"
    assert (said in text) == (left_out > 0)
    shown = view.most_changed(sized(layers).masks, 24)
    assert [index for index, _ in shown] == sorted(index for index, _ in shown)


def test_a_transformer_is_shown_too() -> None:
    text = text_of(transformer())
    assert "LayerNorm, 64 masks" in text
    assert "its logits, reduced by PCA and laid out in a plane" in text


def test_many_classes_have_no_matrix_but_a_table(rendered: dict[str, str]) -> None:
    assert "<title>Confusions" not in rendered["large"]
    text = "".join(parsed(rendered["large"]).text)
    assert "1000 classes are too many for a picture" in text
    assert "The largest changes off the diagonal; 8 of 334" in text


def test_nothing_runs_and_nothing_is_loaded(rendered: dict[str, str]) -> None:
    forbidden = {"script", "link", "iframe", "object", "embed", "base", "form", "input", "use", "image"}  # fmt: skip
    for html in rendered.values():
        for tag, attributes in parsed(html).tags:
            assert tag not in forbidden
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]
            if (source := attributes.get("src")) is not None:
                assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", source)
            if (link := attributes.get("href")) is not None:
                assert link.startswith(("https://", "#"))
        css = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
        assert css is not None
        assert "url(" not in css[1]
        digest = base64.b64encode(hashlib.sha256(css[1].encode()).digest()).decode()
        assert f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:" in html


def test_pages_are_accessible(rendered: dict[str, str]) -> None:
    for html in rendered.values():
        page = parsed(html)
        assert page.all("html") == [{"lang": "en"}]
        assert len(page.all("h1")) == len(page.all("main")) == 1
        assert html.count("<table") == html.count("<caption>")
        assert all("alt" in image for image in page.all("img"))
        assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
        for figure in re.findall(r"<svg[^>]*role=\"img\"[^>]*>(.*?)</svg>", html, re.DOTALL):
            assert re.match(r"<title>[^<]+</title><desc>[^<]+</desc>", figure)
        assert html.count("<svg") == len(re.findall(r"<svg[^>]*role=\"img\"", html))
        identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(identifiers) == len(set(identifiers))
        anchors = {a["href"] for a in page.all("a") if (a["href"] or "").startswith("#")}
        assert anchors <= {f"#{identifier}" for identifier in identifiers}


def test_hostile_text_stays_text(rendered: dict[str, str]) -> None:
    known_pages = [parsed(rendered[name]) for name in ("met", "missed", "weights", "untouched")]
    tags = {tag for page in known_pages for tag, _ in page.tags}
    known = {(tag, name) for page in known_pages for tag, a in page.tags for name in a}
    html = rendered["hostile"]
    page = parsed(html)
    assert {tag for tag, _ in page.tags} <= tags
    assert {(tag, name) for tag, attributes in page.tags for name in attributes} <= known
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    assert "\udc80" not in html
    assert "{{ 7 * 7 }}" in "".join(page.text)


def test_pages_stay_small(rendered: dict[str, str]) -> None:
    for name, html in rendered.items():
        assert len(html.encode()) < 1_500_000, name


def test_every_chart_has_its_numbers_in_a_table() -> None:
    html = page_of(sample_purify())
    for said in ("Stage 1 as a table", "Masks as a table", "The map in numbers", "All confusions as a table"):  # fmt: skip
        details = html.split(f"<summary>{said}</summary>")[1].split("</details>")[0]
        assert "<table" in details
    first_layer: MaskLayer = sample_purify().masks[0]
    assert f'<td class="n">{first_layer.near_one}</td>' in html


# ---- Markdown


@pytest.mark.parametrize("make", [hostile, large, *VARIANTS.values()])
def test_markdown_is_short_and_inert(make: Callable[[], PurifyResult]) -> None:
    text = to_markdown(make())
    assert len(text) <= MARKDOWN_CHARACTERS
    outside = re.sub(r"(?s)(`{3,})text\n.*?\n\1\n", "", text)
    outside = re.sub(r"`[^`\n]+`", "", outside)
    assert not re.search(r"<[a-zA-Z/!]", outside)
    assert "https://" not in outside
    assert "www." not in outside
    assert "@" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert not re.search(r"[\x1b\u202e]", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert len(lines) <= 22


def test_a_judge_trigger_that_was_found_too_is_no_unseen_one() -> None:
    result = few_figures(sample_purify())
    found, judge = result.outcomes
    both = replace(judge, found_too=True)
    found_too = replace(result, outcomes=(found, both))
    assert [entry.origin for entry in view.outcomes(found_too)] == ["found", "judge, also found"]
    for text in (text_of(found_too), to_markdown(found_too), shown(found_too)):
        assert view.FOUND_TOO in text
        assert view.NEVER_SEEN not in text
        assert "unseen |" not in text
    mixed = replace(result, outcomes=(found, both, judge))
    assert view.cautions(mixed)[:3] == [view.NO_PROOF, view.NEVER_SEEN, view.FOUND_TOO]
    assert view.FOUND_TOO not in view.cautions(result)


def made_of(hits: int, eligible: int, lost: int, gained: int, images: int) -> PurifyResult:
    """Goals met by so many counts, of 5% and 3 points."""
    result = few_figures(sample_purify())
    outcome = replace(
        result.outcomes[0], eligible=eligible, hits=Counts(before=eligible, after=hits)
    )
    confusion = result.confusion
    assert confusion is not None
    return replace(
        result,
        outcomes=(outcome,),
        confusion=replace(confusion, lost=lost, gained=gained),
        judge=replace(result.judge, images=images),
        goals=replace(result.goals, max_asr=0.05, max_acc_drop=0.03),
    )


@pytest.mark.parametrize(
    ("hits", "eligible", "lost", "gained", "images", "says"),
    [
        (0, 72, 0, 0, 1000, ["0 hits of 72 leave room for an ASR of 5.1% (goal: at most 5.0%)"]),
        (0, 74, 0, 0, 1000, []),
        (1, 60, 0, 0, 1000, ["1 hit of 60 leave"]),
        (30, 1000, 0, 0, 1000, []),
        (40, 1000, 0, 0, 1000, ["40 hits of 1000 leave room for an ASR of 5.4%"]),
        (
            0,
            1000,
            0,
            0,
            80,
            ["0 lost and 0 gained of 80 images leave room for a loss of 4.51 points"],
        ),
        (0, 1000, 0, 0, 130, []),
        (
            0,
            1000,
            10,
            10,
            200,
            ["10 lost and 10 gained of 200 images leave room for a loss of 5.08"],
        ),
        (0, 9, 0, 0, 10, ["an ASR of 29.9%", "a loss of 30.85 points of accuracy"]),
    ],
)
def test_counts_that_prove_no_goal_say_so(
    hits: int, eligible: int, lost: int, gained: int, images: int, says: list[str]
) -> None:
    made = made_of(hits, eligible, lost, gained, images)
    (caution,) = view.unproven(made) or [""]
    assert bool(caution) == bool(says), caution
    assert all(part in caution for part in says), caution
    assert caution in shown(made)
    assert caution in to_markdown(made)
    assert caution in text_of(made)
    missed_one = replace(made, goals=replace(made.goals, missed=("something.",)))
    assert view.unproven(missed_one) == []


@pytest.mark.parametrize(("lost", "gained"), [(0.10, 0.06), (0.05, 0.01), (0.02, 0.02), (0.04, 0)])
def test_the_interval_of_a_loss_holds_it(lost: float, gained: float) -> None:
    draws = np.random.default_rng(0).multinomial(200, (lost, gained, 1 - lost - gained), 4000)
    held = [
        -difference_bound(int(b), int(a), 200, view.ALPHA) >= lost - gained for a, b, _ in draws
    ]
    assert np.mean(held) >= 0.97  # 97.5%, less what 4,000 draws may miss


@pytest.mark.parametrize(("before", "after", "total"), [(80, 77, 80), (1, 4, 80), (40, 40, 80)])
def test_a_difference_is_rounded_as_the_goals_are(before: int, after: int, total: int) -> None:
    sign = "−" if after < before else "+" if after > before else "±"
    said = view.difference(Rate(before, total), Rate(after, total))
    assert said == f"{sign}{abs(after - before) / total * 100:.1f} points"


def test_older_records_count_no_exchange() -> None:
    made = made_of(0, 1000, 0, 0, 10)
    assert made.confusion is not None
    older = replace(made, confusion=replace(made.confusion, lost=None, gained=None))
    assert view.unproven(older) == []


def test_markdown_has_the_cautions_and_the_numbers() -> None:
    text = to_markdown(sample_purify())
    for said in (view.NO_PROOF, view.NEVER_SEEN, "2.2% (4 of 180, 95% interval 0.9–5.6%)", "never means safe"):  # fmt: skip
        assert said in text


# ---- the terminal


def shown(result: PurifyResult) -> str:
    console = Console(file=io.StringIO(), width=110, highlight=False)
    show_purify(result, [Path("model.purify.html")], console)
    made = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\s+", " ", made)


def test_the_terminal_shows_what_came_of_it() -> None:
    text = shown(sample_purify())
    for said in (
        "✔ GOALS MET", "accuracy 93.5% 92.5% −1.0 91.5% −2.0", "highest ASR 98.3% 2.2% −96.1 43.9% −54.4",
        "sticker.png judge, unseen airplane 177/180 4/180", "✔ masks, 400 steps", view.NO_PROOF,
        view.NEVER_SEEN, "suspect.purified.onnx sha256 9b01d6f4…77aa", "written model.purify.html",
        "scan of the purified model: – NO EVIDENCE FOUND", "never means safe",
    ):  # fmt: skip
        assert said in text


def test_the_terminal_shows_what_was_missed_and_what_was_left_alone() -> None:
    assert "✖ GOALS MISSED sticker.png still has an ASR of 35.0%" in shown(missed())
    assert "No file was written, because a goal was missed." in shown(missed())
    assert "– NOTHING TO REMOVE No trigger that was tried works" in shown(untouched())
    assert "did nothing: the model was not touched" in shown(untouched())
    assert "plain fine-tuning" not in shown(weights())


def test_the_terminal_is_safe_from_hostile_text() -> None:
    text = shown(hostile())
    assert not re.search(r"[\x1b\u202e]", text)
    assert "[link](https://evil.example)" in text, "no markup of rich was obeyed"
    assert len(goals_line(hostile()).splitlines()) == 1


def test_one_line_for_scripts() -> None:
    assert goals_line(sample_purify()) == (
        "GOALS MET  suspect.onnx  asr=0.983->0.022 [0.009,0.056]  acc=0.935->0.925  "
        "file=suspect.purified.onnx"
    )
    assert goals_line(untouched()) == "NOTHING TO REMOVE  suspect.onnx  acc=0.935->0.935"


def test_rounds_say_what_was_found_and_told() -> None:
    method = sample_purify().method
    assert method is not None
    first, second = view.round_sentences(method)
    assert "told of 1 trigger;" in first
    assert "(seed 1) found 1: The <patch>" in first
    assert first.endswith("The next round was told of them.")
    assert second.endswith("(seed 2) found nothing more.")
    left = replace(method, rounds=method.rounds[:1])
    assert view.round_sentences(left)[0].endswith("No round was left for them.")
    page = to_html(sample_purify())
    assert "The &lt;patch&gt; that the search found" in page
    assert "<patch>" not in page


@pytest.mark.parametrize(
    ("fit", "judge", "ending", "code"),
    [
        (Verdict.NO_EVIDENCE, Verdict.NO_EVIDENCE, view.Ending.NOTHING, 0),
        (Verdict.NO_EVIDENCE, Verdict.BACKDOOR, view.Ending.UNTOUCHED, 1),
        (Verdict.SUSPICIOUS, Verdict.NO_EVIDENCE, view.Ending.UNTOUCHED, 1),
        (Verdict.INCONCLUSIVE, Verdict.SUSPICIOUS, view.Ending.UNTOUCHED, 1),
        (Verdict.INCONCLUSIVE, Verdict.NO_EVIDENCE, view.Ending.UNTOUCHED, 3),
    ],
)
def test_there_is_nothing_to_remove_only_where_no_scan_says_otherwise(
    fit: Verdict, judge: Verdict, ending: view.Ending, code: int
) -> None:
    result = untouched()
    before = replace(result.before, judgement=sample_result(judge).judgement)
    result = replace(result, evidence=sample_result(fit), before=before)
    assert view.ending(result) is ending
    assert result.exit_code == code
    worse = max(fit, judge, key=list(Verdict).index)
    said = to_markdown(result)
    assert (f"A scan of the suspect ends in {worse}" in view.headline(result)) is (
        ending is view.Ending.UNTOUCHED
    )
    assert ("NOTHING TO REMOVE" in said) is (ending is view.Ending.NOTHING)


def test_evidence_from_made_images_is_called_so() -> None:
    result = sample_purify()
    assert view.scan_lines(result)[0].images == f"{result.fit.images} fit images"
    made = tuple(replace(facts, family="leaves") for facts in result.evidence.images)
    result = replace(result, evidence=replace(result.evidence, images=made))
    assert view.scan_lines(result)[0].images == "made images"


def test_a_round_that_could_not_be_searched_is_no_round_that_was_not_left() -> None:
    method = sample_purify().method
    assert method is not None
    told = replace(
        method,
        rounds=(
            Round(known=1, seed=1, found=("a patch",)),
            Round(known=2, seed=2, found=None),
        ),
    )
    first, second = view.round_sentences(told)
    assert first.endswith("The next round was told of them.")
    assert second == "Round 2 was told of 2 triggers; no time was left to search its result."


@pytest.mark.parametrize(
    "text",
    ["_http://evil.example", "1https://evil.example", "ftp://evil.example", "_www.evil.example"],
)
def test_no_address_is_a_link_in_markdown(text: str) -> None:
    assert not re.search(r"://|www\.", inert(text))


def test_class_names_in_cautions_are_inert_in_markdown() -> None:
    names = ["](x) [click](//evil.example) @org/team <img src=//e.example/p>"] * 99
    result = with_names(sample_purify(), names)
    assert result.after is not None
    alarm = replace(sample_result(Verdict.BACKDOOR).judgement, headline=f'the answer "{names[0]}"')
    said = to_markdown(replace(result, after=replace(result.after, judgement=alarm)))
    said = re.sub(r"`[^`\n]+`", "", said)  # in code nothing is a link
    assert "ends in BACKDOOR" in said
    assert not re.search(r"(?<!\\)\]\(|@org|<img", said)


def test_what_goes_there_unstamped_is_counted() -> None:
    """So that what a weak network confuses anyway is not taken for what is left of the backdoor."""
    rows = ((40, 3, 1), (2, 40, 0), (5, 0, 30))
    result = replace(
        sample_purify(), confusion=Confusion(before=rows, after=(*rows[:2], (4, 1, 30)))
    )
    found = result.outcomes[0]
    one, two, several = (
        replace(found, eligible=79, **fields)
        for fields in (
            {"target": 0},
            {"target": 1, "source": 0, "scope": "source-specific"},
            {"target": None, "mapping": (1, 2, -1), "scope": "all-to-all"},
        )
    )
    seen = view.outcomes(replace(result, outcomes=(one, two, several)))
    counts = [(s.unstamped.before.hits, s.unstamped.after.hits) for s in seen if s.unstamped]
    assert counts == [(2 + 5, 2 + 4), (3, 3), (3 + 0, 3 + 0)]
    assert not any(s.unstamped for s in view.outcomes(replace(result, confusion=None)))
