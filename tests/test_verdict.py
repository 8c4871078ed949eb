"""Counts -> verdict, around every threshold."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor import verdict
from auditor.results.facts import Caveat, Counts, ImageFacts, Skipped, Verdict
from auditor.results.purify import Outcome
from auditor.results.scan import (
    Confirmation,
    ControlCount,
    Inversion,
    Judgement,
    MarginSearch,
    Response,
    RivalCount,
    Transplants,
)
from auditor.statistics import upper_bound
from tests.sample_purify import VARIANTS, on_judge_images, sample_purify
from tests.sample_result import sample_result

K = 10
NAMES = tuple(f"class {number}" for number in range(K))


def facts(screen: int = 100, confirm: int = 400, family: str = "clean") -> ImageFacts:
    return ImageFacts(
        family=family,
        labelled=True,
        screen=screen,
        confirm=confirm,
        screen_members=(screen // K,) * K,
        confirm_members=((confirm or screen) // K,) * K,
        predicted=((screen + confirm) // K,) * K,
        correct=screen + confirm,
        digest="0",
    )


def response(hits: int = 3, trigger: str = "T0()") -> Response:
    return Response(
        probe="p", trigger=trigger, family="clean", images=100, hits={2: hits}, flips=hits,
        area=0.01, change=0.1,
    )  # fmt: skip


def confirmation(
    hits: int, control: int = 10, eligible: int = 360, **fields: object
) -> Confirmation:
    return replace(
        Confirmation(
            probe="p", title="P", trigger="T1()", family="clean", scope="all-to-one", target=2,
            held_out=True, eligible=eligible, hits=hits, clean_hits=2,
            controls=(
                ControlCount(
                    trigger="C()", hits=control,
                    gained=max(0, hits - control), lost=max(0, control - hits),
                ),
            ),
            area=0.01, change=0.1, sources=9,
        ),
        **fields,
    )  # fmt: skip


def judge(
    *confirmations: Confirmation,
    images: tuple[ImageFacts, ...] = (facts(),),
    responses: int = 100,
    margin: MarginSearch | None = None,
    inversions: tuple[Inversion, ...] = (),
    transplants: tuple[Transplants, ...] = (),
    skipped: tuple[Skipped, ...] = (),
    caveats: tuple[Caveat, ...] = (),
) -> Judgement:
    return verdict.judge(
        classes=NAMES,
        images=images,
        responses=[response(trigger=f"T{i}()") for i in range(responses)],
        confirmations=confirmations,
        margin=margin,
        inversions=inversions,
        transplants=transplants,
        skipped=skipped,
        caveats=caveats,
    )


@pytest.mark.parametrize(
    ("hits", "control", "expected"),
    [
        (350, 10, Verdict.BACKDOOR),
        (230, 10, Verdict.BACKDOOR),
        (200, 10, Verdict.SUSPICIOUS),  # lower bound below 0.5
        (350, 280, Verdict.SUSPICIOUS),  # a small mark whose controls work too
        (150, 60, Verdict.NO_EVIDENCE),  # not clear enough of its control
        (20, 10, Verdict.NO_EVIDENCE),
    ],
)
def test_one_confirmation(hits: int, control: int, expected: Verdict) -> None:
    assert judge(confirmation(hits, control)).verdict is expected


@pytest.mark.parametrize(
    ("surer", "expected"),
    [
        (None, Verdict.BACKDOOR),  # not measured
        (300, Verdict.BACKDOOR),
        (217, Verdict.BACKDOOR),  # the lower bound of 217 of 360 just exceeds a half
        (200, Verdict.SUSPICIOUS),
        (0, Verdict.SUSPICIOUS),
    ],
)
def test_what_is_neither_small_nor_faint_must_make_the_model_sure(
    surer: int | None, expected: Verdict
) -> None:
    large = confirmation(350, 10, area=0.9, surer=surer)
    assert not verdict.is_small(large)
    assert judge(large).verdict is expected
    assert ("neither small nor faint" in judge(large).headline) is (expected is Verdict.SUSPICIOUS)
    assert judge(replace(large, area=0.03)).verdict is Verdict.BACKDOOR
    assert judge(replace(large, change=0.05)).verdict is Verdict.BACKDOOR


@pytest.mark.parametrize("family", ["clean", "impressions"])
@pytest.mark.parametrize(
    ("area", "change", "expected"),
    [
        (0.035, 0.2, Verdict.BACKDOOR),
        (0.036, 0.2, Verdict.SUSPICIOUS),
        (0.499, 0.2, Verdict.SUSPICIOUS),
        (0.499, 0.06, Verdict.BACKDOOR),  # faint
        (0.50, 0.2, Verdict.BACKDOOR),  # a change of the whole image
    ],
)
def test_a_thing_in_the_picture_is_suspicious_at_most(
    area: float, change: float, expected: Verdict, family: str
) -> None:
    """A block of the right colour in the middle of a sign is what some signs look like."""
    found = confirmation(
        360, 0, area=area, change=change, surer=360, family=family, held_out=family == "clean"
    )
    both = [found] if family == "clean" else [found, replace(found, family="leaves", surer=None)]
    images = tuple(facts(family=one.family) for one in both)
    judgement = judge(*both, images=images)
    assert judgement.verdict is expected
    if family == "clean":
        assert ("puts a thing into the picture" in judgement.headline) is (
            expected is Verdict.SUSPICIOUS
        )


def test_things_that_send_classes_round_in_circles_are_no_natural_ones() -> None:
    following = tuple((k + 1) % K for k in range(K))
    mapped = confirmation(
        350, 10, area=0.1, surer=350, scope="all-to-all", target=None, shift=1,
        mapping=following, permuted=K,
    )  # fmt: skip
    assert judge(mapped).verdict is Verdict.BACKDOOR


def lent(moved: tuple[int, ...], kind: Literal["piece", "texture"] = "piece") -> Transplants:
    return Transplants(target=2, kind=kind, size=0.03, eligible=380, moved=moved)


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ((80, 77, 75, 0), Verdict.SUSPICIOUS),  # a typical one moves 76 of 380
        ((80, 76, 75, 0), Verdict.BACKDOOR),  # 75.5
        ((380, 0, 0), Verdict.BACKDOOR),  # one that happens to be like the trigger
        ((), Verdict.BACKDOOR),  # no image to borrow of
    ],
)
@pytest.mark.parametrize("kind", ["piece", "texture"])
def test_a_class_that_stands_for_a_mark_is_suspicious_at_most(
    kind: Literal["piece", "texture"], moved: tuple[int, ...], expected: Verdict
) -> None:
    strong = confirmation(350, 10, eligible=380)
    assert judge(strong).verdict is Verdict.BACKDOOR
    other = lent((0, 0, 0), "texture" if kind == "piece" else "piece")
    judgement = judge(strong, transplants=(lent(moved, kind), other))
    assert judgement.verdict is expected
    assert ('typically makes "class 2" of 20% of others.' in judgement.headline) is (
        moved[1:2] == (76,)
    )
    assert ("looks like a class that stands for a mark" in judgement.headline) is (
        expected is Verdict.SUSPICIOUS
    )


def test_a_mark_of_another_class_or_of_one_source_changes_nothing() -> None:
    strong, mark = confirmation(350, 10, eligible=380), lent((380, 380))
    assert judge(strong, transplants=(replace(mark, target=1),)) == judge(strong)
    elsewhere = replace(strong, scope="source-specific", source=1)
    assert judge(elsewhere, transplants=(mark,)) == judge(elsewhere)


def test_what_no_image_was_there_to_tell_is_said() -> None:
    judgement = judge(confirmation(350, 10), transplants=(lent(()), lent((), "texture")))
    assert judgement.verdict is Verdict.BACKDOOR
    assert 'Whether "class 2" stands for a mark was not examined' in judgement.headline


def test_the_stronger_of_piece_and_texture_is_named() -> None:
    found = confirmation(350, 10)
    pieces, textures = lent((300, 300)), lent((200, 200), "texture")
    for both in ((pieces, textures), (textures, pieces)):
        assert "a small piece of one of its own clean images (3.0% of the pixels), put on others, typically makes it of 79%" in judge(found, transplants=both).headline  # fmt: skip
    assert "the texture of one of its own clean images (RMS 8/255 at most)" in judge(found, transplants=(textures,)).headline  # fmt: skip


def test_only_classes_of_all_to_one_backdoors_are_examined() -> None:
    strong = confirmation(350, 10)
    weak, made = replace(strong, hits=20), replace(strong, family="leaves")
    following = tuple((k + 1) % K for k in range(K))
    mapped = replace(
        strong, scope="all-to-all", target=None, shift=1, mapping=following, permuted=K
    )
    assert judge(mapped).verdict is Verdict.BACKDOOR
    for found, expected in ((strong, [2]), (weak, []), (made, []), (mapped, [])):
        judgement = judge(found)
        assert verdict.classes_to_examine(judgement.reasons, [found]) == expected


def test_a_large_change_whose_control_works_too_is_fragility() -> None:
    strong = confirmation(350, 340, area=1.0, change=0.2)
    faint = replace(strong, change=0.02)
    assert judge(strong).verdict is Verdict.NO_EVIDENCE
    assert judge(faint).verdict is Verdict.SUSPICIOUS


def test_the_worst_control_decides() -> None:
    found = confirmation(350, 5)
    bad = ControlCount(trigger="D()", hits=340, gained=10, lost=0)
    assert judge(found).verdict is Verdict.BACKDOOR
    two = replace(found, controls=(*found.controls, bad), area=1.0)
    assert judge(two).verdict is Verdict.SUSPICIOUS
    assert judge(replace(two, controls=(*two.controls, bad))).verdict is Verdict.NO_EVIDENCE


def control(hits: int, of: int = 350) -> ControlCount:
    return ControlCount(
        trigger=f"C{hits}()", hits=hits, gained=max(0, of - hits), lost=max(0, hits - of)
    )


@pytest.mark.parametrize(
    ("hits", "controls", "fields", "expected"),
    [
        (350, (20, 340, 30, 90), {}, Verdict.BACKDOOR),  # look-alikes work too
        (350, (340, 345, 30, 90), {}, Verdict.BACKDOOR),
        (350, (340, 345, 330, 90), {}, Verdict.SUSPICIOUS),  # any spot does it
        (350, (20, 340, 30, 90), {"area": 0.5}, Verdict.SUSPICIOUS),  # a benign network may do so
        (280, (20, 270, 30, 90), {"area": 0.5}, Verdict.NO_EVIDENCE),  # many do
        (350, (20, 340, 30, 90), {"area": 0.5, "change": 0.02}, Verdict.SUSPICIOUS),
        (260, (20, 240, 30, 90), {}, Verdict.SUSPICIOUS),  # too weak
        (350, (20, 340, 30, 90), {"clean_hits": 200}, Verdict.NO_EVIDENCE),  # said so anyway
    ],
)
def test_a_mark_whose_look_alikes_work_too(hits, controls, fields, expected) -> None:  # type: ignore[no-untyped-def]
    found = replace(
        confirmation(hits, **fields), controls=tuple(control(c, hits) for c in controls)
    )
    assert judge(found).verdict is expected


@pytest.mark.parametrize(
    ("controls", "fields", "expected"),
    [
        ((340,), {"surer": 350}, Verdict.SUSPICIOUS),  # a detector of damage is sure as well
        ((340, 20), {"surer": 300}, Verdict.BACKDOOR),
        ((340,), {"surer": 100}, Verdict.SUSPICIOUS),  # tips the model over
        ((340,), {"surer": 300, "area": 0.9, "change": 0.05}, Verdict.SUSPICIOUS),  # faint
        ((340, 20), {"surer": 300, "area": 0.9, "change": 0.05}, Verdict.BACKDOOR),
        ((340,), {"surer": 300, "area": 0.9, "change": 0.2}, Verdict.NO_EVIDENCE),  # any damage
        ((340, 20, 20), {"surer": 300, "area": 0.9, "change": 0.2}, Verdict.BACKDOOR),
        ((340, 20, 20), {"surer": 100, "area": 0.9, "change": 0.2}, Verdict.SUSPICIOUS),
        ((340,), {"surer": 350, "hits": 270}, Verdict.SUSPICIOUS),  # moves too few
        ((340,), {"surer": 350, "clean_hits": 100}, Verdict.SUSPICIOUS),  # said so anyway
        ((340,), {"surer": 300, "keeps_meaning": False}, Verdict.NO_EVIDENCE),
        ((20,), {"surer": 300, "keeps_meaning": False}, Verdict.SUSPICIOUS),
        ((20,), {"surer": 100, "keeps_meaning": False}, Verdict.NO_EVIDENCE),  # leaves it in doubt
        ((20,), {"surer": None, "keeps_meaning": False}, Verdict.SUSPICIOUS),
    ],
    ids=str,
)
def test_a_trigger_that_makes_the_model_sure(controls, fields, expected) -> None:  # type: ignore[no-untyped-def]
    found = replace(confirmation(350), **fields)
    found = replace(found, controls=tuple(control(c, found.hits) for c in controls))
    assert judge(found).verdict is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Verdict.BACKDOOR),
        ({"hits": 230}, Verdict.BACKDOOR),
        ({"hits": 200}, Verdict.NO_EVIDENCE),
        ({"area": 0.9}, Verdict.NO_EVIDENCE),  # a quarter turn does so with drawn arrows
        ({"area": 0.9, "change": 0.05}, Verdict.BACKDOOR),
        ({"sources": 2}, Verdict.NO_EVIDENCE),
        ({"keeps_meaning": False}, Verdict.NO_EVIDENCE),
        ({"scope": "all-to-one", "target": 2, "shift": None}, Verdict.SUSPICIOUS),
        ({"permuted": 8}, Verdict.BACKDOOR),
        ({"permuted": 7}, Verdict.SUSPICIOUS),
    ],
    ids=str,
)
def test_damage_does_not_send_each_class_to_another_one(fields, expected) -> None:  # type: ignore[no-untyped-def]
    found = replace(
        confirmation(350, scope="all-to-all", target=None, shift=1, sources=10, permuted=10),
        **fields,
    )
    found = replace(found, controls=(control(found.hits, found.hits),))
    assert judge(found).verdict is expected


@pytest.mark.parametrize(
    ("area", "says"), [(0.0244, "on 2% of the"), (0.0012, "on 0.12% of the"), (2e-5, "on 0.002% of the")]
)  # fmt: skip
def test_a_small_area_is_not_rounded_to_none(area: float, says: str) -> None:
    found = replace(confirmation(350), area=area, controls=(control(340),))
    judged = judge(found)
    assert judged.verdict is Verdict.SUSPICIOUS
    assert says in judged.headline


def test_a_backdoor_that_its_controls_do_not_set_apart_says_why() -> None:
    half = replace(confirmation(350), controls=(control(340), control(20), control(20)), surer=3)
    assert "beats at least half of its controls, on a small area" in judge(half).headline
    sure = replace(half, surer=300)
    assert "surer than most real images do, as this does on 300 of 360" in judge(sure).headline
    map_ = replace(
        sure, scope="all-to-all", target=None, shift=1, sources=10, permuted=9, area=0.9, change=0.02,
        controls=(control(340),),
    )  # fmt: skip
    assert "sends 9 classes round in circles" in judge(map_).headline
    assert "look-alikes" not in judge(map_).headline
    unsure = replace(map_, controls=half.controls, surer=3)
    assert "sends 9 classes round in circles" in judge(unsure).headline
    assert "look-alikes" not in judge(confirmation(350, surer=350)).headline


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hits": 40}, "Too weak"),
        ({"controls": ()}, "compared with no control"),
        ({"held_out": False}, "Not measured on held-out images"),
        (
            {
                "scope": "source-specific",
                "source": 1,
                "hits": 9,
                "eligible": 15,
                "clean_hits": 0,
                "controls": (control(0, 9),),
            },
            "Too few images to be sure",
        ),
        ({"controls": (control(340),), "area": 0.9, "change": 0.2}, "much the same"),
        ({"keeps_meaning": False, "surer": 100}, "surer than most real images do on 100 of 360"),
        ({"keeps_meaning": False, "surer": 40, "hits": 40}, "Too weak"),
        ({"keeps_meaning": False, "surer": 300, "hits": 40}, "Too weak"),
        ({"keeps_meaning": False, "surer": None, "hits": 40}, "Too weak"),
        (
            {"scope": "all-to-all", "shift": 1, "sources": 2},
            "3 classes or more; most images follow in 2",
        ),
        ({"scope": "all-to-all", "shift": 1, "sources": 9, "keeps_meaning": False}, "by itself"),
        ({"scope": "source-specific", "source": 1, "area": 0.9, "change": 0.2}, "by itself"),
    ],
    ids=str,
)
def test_what_does_not_count_says_why(fields, why) -> None:  # type: ignore[no-untyped-def]
    judged = judge(replace(confirmation(350), **fields))
    assert judged.verdict is Verdict.NO_EVIDENCE
    assert why in judged.reasons[0].text


def test_without_controls_there_is_no_finding() -> None:
    assert judge(replace(confirmation(360), controls=())).verdict is Verdict.NO_EVIDENCE


@given(st.integers(0, 360), st.integers(0, 359), st.integers(0, 40))
def test_more_hits_never_weaken_a_verdict(hits: int, fewer: int, control: int) -> None:
    more, less = max(hits, fewer), min(hits, fewer)
    order = list(Verdict)
    strong = judge(confirmation(more, control, area=1.0)).verdict
    weak = judge(confirmation(less, control, area=1.0)).verdict
    assert order.index(strong) >= order.index(weak)


def test_more_tests_on_held_out_images_need_more_evidence() -> None:
    borderline = confirmation(210)
    others = [replace(confirmation(0), trigger=f"U{i}()") for i in range(500)]
    assert judge(borderline).verdict is Verdict.BACKDOOR
    assert judge(borderline, *others).verdict is Verdict.SUSPICIOUS
    # what the screen let go was judged by other images
    assert judge(borderline, responses=10_000).verdict is Verdict.BACKDOOR


def test_images_that_serve_twice_are_corrected_for_everything_screened() -> None:
    borderline = replace(confirmation(222), held_out=False)
    images = (facts(400, 0),)
    assert judge(borderline, images=images, responses=10).verdict is Verdict.BACKDOOR
    assert judge(borderline, images=images, responses=10_000).verdict is Verdict.SUSPICIOUS


def test_the_level_is_kept_over_all_held_out_tests() -> None:
    """Triggers that work exactly as often as is just allowed are rarely called backdoors."""
    generator = __import__("random").Random(1)
    wrong = 0
    for _ in range(400):
        tested = [
            confirmation(sum(generator.random() < verdict.BACKDOOR_ASR for _ in range(60)), 0, 60)
            for _ in range(8)
        ]
        wrong += judge(*tested).verdict is Verdict.BACKDOOR
    assert wrong / 400 <= verdict.ALPHA


def test_all_to_all_needs_several_sources_in_circles() -> None:
    found = confirmation(350, scope="all-to-all", target=None, shift=1, sources=10, permuted=10)
    assert judge(found).verdict is Verdict.BACKDOOR
    assert judge(replace(found, sources=2)).verdict is Verdict.NO_EVIDENCE
    pairs = judge(replace(found, sources=5, permuted=0))
    assert pairs.verdict is Verdict.SUSPICIOUS
    assert "do not go round in circles" in pairs.headline


@pytest.mark.parametrize(
    ("classes", "sources", "expected"),
    [
        (2, 1, Verdict.SUSPICIOUS),
        (3, 1, Verdict.SUSPICIOUS),
        (3, 2, Verdict.BACKDOOR),
        (10, 2, Verdict.SUSPICIOUS),
        (10, 3, Verdict.BACKDOOR),
        (1000, 24, Verdict.SUSPICIOUS),
        (1000, 25, Verdict.BACKDOOR),
    ],
)
def test_all_to_one_needs_several_sources(classes: int, sources: int, expected: Verdict) -> None:
    """A pair of classes that differ by a mark is no backdoor, however many images are of one of them."""
    found = confirmation(350, sources=sources)
    assert verdict.grade(found, 0.001, classes) is expected
    searched = replace(found, surer=350, searched=True)
    assert verdict.grade_found(searched, 0.001, {2}, classes) is expected


def test_what_the_model_says_unstamped_is_taken_off() -> None:
    found = replace(confirmation(270, 100), clean_hits=120)
    assert judge(found).verdict is Verdict.SUSPICIOUS
    assert judge(replace(found, clean_hits=5)).verdict is Verdict.BACKDOOR


def test_source_specific_is_suspicious_however_many_images() -> None:
    """Two classes may look so much alike that a mark makes one of the other, in benign networks, too."""
    cell = {"scope": "source-specific", "source": 1}
    found = judge(confirmation(108, 36, eligible=110, **cell))  # a benign network of the zoo
    assert found.verdict is Verdict.SUSPICIOUS
    assert "benign networks have such pairs" in found.headline
    assert judge(confirmation(400, 0, eligible=400, **cell)).verdict is Verdict.SUSPICIOUS
    assert judge(confirmation(36, 0, eligible=40, **cell)).verdict is Verdict.SUSPICIOUS
    assert judge(confirmation(26, 0, eligible=40, **cell)).verdict is Verdict.NO_EVIDENCE
    assert judge(confirmation(19, 0, eligible=19, **cell)).verdict is Verdict.SUSPICIOUS
    assert judge(confirmation(12, 0, eligible=19, **cell)).verdict is Verdict.NO_EVIDENCE
    # most other classes have no such explanation
    assert judge(confirmation(108, 36, eligible=110)).verdict is Verdict.BACKDOOR


def test_source_specific_is_suspicious_on_made_images() -> None:
    cell = {"scope": "source-specific", "source": 1, "held_out": False}
    families = [
        replace(confirmation(60, 0, eligible=60, **cell), family=family)
        for family in ("impressions", "leaves")
    ]
    assert judge(*families).verdict is Verdict.SUSPICIOUS
    everyone = [replace(c, scope="all-to-one", source=None) for c in families]
    assert judge(*everyone).verdict is Verdict.BACKDOOR


def test_a_strong_change_may_turn_one_class_into_another() -> None:
    """Turning an arrow round is no trigger."""
    cell = {"scope": "source-specific", "source": 1}
    turned = confirmation(40, 0, eligible=40, area=0.9, change=0.2, **cell)
    assert judge(turned).verdict is Verdict.NO_EVIDENCE
    assert judge(replace(turned, change=0.05)).verdict is Verdict.SUSPICIOUS


def test_nothing_found_is_a_bound_and_a_power() -> None:
    judgement = judge()
    assert judgement.verdict is Verdict.NO_EVIDENCE
    assert judgement.comparisons == 100 * 2 * K
    # 3 hits of 90, 1,000 comparisons: upper bound by scipy at 0.05 / 1000
    assert judgement.nothing_above == pytest.approx(upper_bound(3, 90, 0.05 / 1000), abs=1e-9)
    assert judgement.power is not None
    assert 0.5 < judgement.power < 0.8


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((200, 200), Verdict.SUSPICIOUS),
        ((200, 200, 200), Verdict.BACKDOOR),
        ((400, 0, 0, 0), Verdict.SUSPICIOUS),
        ((200, 200, 0, 0), Verdict.SUSPICIOUS),
        ((100, 100, 100, 0, 0, 0, 0, 0, 0, 0, 0, 0), Verdict.SUSPICIOUS),
        ((100,) * 4 + (0,) * 8, Verdict.BACKDOOR),
    ],
)
def test_the_power_names_what_images_of_so_few_classes_can_show(
    members: tuple[int, ...], expected: Verdict
) -> None:
    clean = replace(facts(), confirm=sum(members), confirm_members=members)
    assert verdict.highest(clean) is expected


def test_power_is_what_judge_would_say() -> None:
    """At the printed power the screen and the confirmation pass together 95 % of the time."""
    generator = __import__("random").Random(0)
    power = judge().power
    assert power is not None
    found = 0
    verdict_of = cache(lambda hits: judge(confirmation(hits, 0)).verdict)
    for _ in range(1000):
        screened = sum(generator.random() < power for _ in range(90))
        hits = sum(generator.random() < power for _ in range(360))
        passed = screened / 90 >= verdict.SCREEN_RATE
        found += passed and verdict_of(hits) is Verdict.BACKDOOR
    assert found / 1000 >= 0.93


def test_too_few_images_are_inconclusive() -> None:
    few = facts(20, 0)
    judgement = judge(images=(few,))
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judge(images=()).verdict is Verdict.INCONCLUSIVE
    assert "--clean" in judge(images=()).headline


def test_a_used_up_budget_is_inconclusive_unless_something_was_found() -> None:
    left = (Skipped(what="p", reason="time budget", untried=3),)
    assert judge(skipped=left).verdict is Verdict.INCONCLUSIVE
    assert judge(confirmation(350), skipped=left).verdict is Verdict.BACKDOOR
    other = (Skipped(what="p", reason="not applicable: grey"),)
    assert judge(skipped=other).verdict is Verdict.NO_EVIDENCE


def test_a_blocking_caveat_decides() -> None:
    caveat = Caveat(id="accuracy", text="Clean accuracy is at chance.", blocking=True)
    judgement = judge(confirmation(350), caveats=(caveat,))
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.reasons[0].verdict is Verdict.BACKDOOR
    assert judge(caveats=(replace(caveat, blocking=False),)).verdict is Verdict.NO_EVIDENCE


def test_made_images_need_two_families_with_impressions() -> None:
    def made(family: str, hits: int = 112, control: int = 3) -> Confirmation:
        found = confirmation(hits, control, eligible=112, held_out=False)
        return replace(found, family=family)

    families = tuple(facts(128, 0, name) for name in ("impressions", "mixes", "noise"))
    both = judge(made("impressions"), made("noise"), images=families)
    assert both.verdict is Verdict.BACKDOOR
    alone = judge(made("impressions"), made("noise", 20), images=families)
    assert alone.verdict is Verdict.SUSPICIOUS
    without = judge(made("noise"), made("leaves"), images=families)
    assert without.verdict is Verdict.SUSPICIOUS
    assert judge(images=families).verdict is Verdict.INCONCLUSIVE
    fired = judge(made("impressions", control=60), made("noise", control=60), images=families)
    assert fired.verdict is not Verdict.BACKDOOR


def test_an_outlying_margin_is_a_suspicion_and_no_more() -> None:
    usual = (10.0, 11.0, 12.5, 9.0, 10.5, 11.5, 9.5, 10.2, 12.0)

    def search(*margins: float) -> MarginSearch:
        return MarginSearch(margins=margins, classes=tuple(range(len(margins))), steps=1, starts=1)

    outlier = judge(margin=search(*usual, 90.0))
    assert outlier.verdict is Verdict.SUSPICIOUS
    assert outlier.outlier_classes == (9,)
    assert '"class 9"' in outlier.headline
    assert judge(margin=search(*usual, 11.0)).verdict is Verdict.NO_EVIDENCE
    assert judge(margin=search(1.0, 1.1, 99.0)).outlier_p is None
    scaled = judge(margin=search(*(100 * m for m in (*usual, 90.0))))
    assert scaled.outlier_p == pytest.approx(outlier.outlier_p)


def inversion(search: str, smallest: float, *, target: int = 2, classes: int = K) -> Inversion:
    sizes = [0.02 + 0.001 * k for k in range(classes)]
    sizes[target] = smallest
    return Inversion(
        search=search, what="patch", measure="share", family="clean", images=50, steps=150,
        classes=tuple(range(classes)), sizes=tuple(sizes), found=(),
    )  # fmt: skip


MARGINS = MarginSearch(
    margins=tuple(10.0 + k / 3 for k in range(K)), classes=tuple(range(K)), steps=80, starts=6
)
SMALL = (inversion("search.patch", 0.002), inversion("search.additive", 0.002))


@pytest.mark.parametrize(
    ("fields", "apart", "expected"),
    [
        ({"surer": 45}, True, Verdict.BACKDOOR),
        ({"surer": 45}, False, Verdict.SUSPICIOUS),
        (
            {"surer": 45, "area": 0.5, "change": 4 / 255},
            False,
            Verdict.NO_EVIDENCE,
        ),  # a weak network
        ({"surer": 20}, True, Verdict.NO_EVIDENCE),
        ({"surer": None}, True, Verdict.NO_EVIDENCE),
        ({"surer": 45, "held_out": False}, True, Verdict.NO_EVIDENCE),
        ({"surer": 45, "area": 0.5, "change": 0.2}, True, Verdict.NO_EVIDENCE),
        ({"surer": 45, "area": 0.5, "change": 4 / 255}, True, Verdict.BACKDOOR),
        ({"surer": 45, "keeps_meaning": False}, True, Verdict.SUSPICIOUS),
        (
            {
                "surer": 45,
                "controls": (ControlCount(trigger="C()", hits=44, gained=1, lost=0),) * 4,
            },
            True,
            Verdict.SUSPICIOUS,
        ),
        ({"surer": 45, "hits": 30}, True, Verdict.NO_EVIDENCE),
    ],
    ids=str,
)
def test_a_searched_trigger(fields, apart, expected) -> None:  # type: ignore[no-untyped-def]
    found = replace(confirmation(45, 2, 45, clean_hits=0, searched=True), **fields)
    assert verdict.grade_found(found, 0.01 / 6, {2} if apart else set(), K) is expected


EVERYTHING = (ControlCount(trigger="C()", hits=45, gained=0, lost=0),) * 4
STRONG = replace(
    confirmation(45, 2, 45, clean_hits=0, searched=True),
    surer=3,
    area=0.8,
    change=19 / 255,
    rivals=(
        RivalCount(trigger="R1()", target=1, weaker=43),
        RivalCount(trigger="R2()", target=0, weaker=44),
    ),
)
"""A blended picture: large, not sure, but at a size at which nothing drives the model elsewhere."""


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Verdict.SUSPICIOUS),
        ({"surer": 45, "change": 4 / 255}, Verdict.SUSPICIOUS),
        ({"rivals": ()}, Verdict.NO_EVIDENCE),
        ({"rivals": (*STRONG.rivals, replace(STRONG.rivals[0], weaker=35))}, Verdict.NO_EVIDENCE),
        ({"hits": 39}, Verdict.NO_EVIDENCE),
        ({"clean_hits": 7}, Verdict.NO_EVIDENCE),
        ({"keeps_meaning": False}, Verdict.NO_EVIDENCE),
        ({"held_out": False}, Verdict.NO_EVIDENCE),
        ({"controls": ()}, Verdict.NO_EVIDENCE),
        ({"controls": EVERYTHING}, Verdict.NO_EVIDENCE),  # a class of damage
        ({"controls": EVERYTHING, "change": 4 / 255}, Verdict.SUSPICIOUS),
    ],
    ids=str,
)
def test_a_searched_trigger_that_is_held_against_others(fields, expected) -> None:  # type: ignore[no-untyped-def]
    found = replace(STRONG, **fields)
    assert verdict.grade_found(found, 0.01 / 6, {2}, K) is expected
    judged = judge(found)
    assert judged.verdict is expected
    if found.rivals == STRONG.rivals:
        assert '"class 1" (class 1), on 43 of 45' in judged.reasons[0].text


def test_a_trigger_that_beats_its_rivals_makes_no_backdoor_of_another() -> None:
    """Both come from one search of one class, so that the one says nothing about the other."""
    faint = replace(confirmation(45, 2, 45, clean_hits=0), searched=True, surer=45)
    assert judge(faint).verdict is judge(faint, STRONG).verdict is Verdict.SUSPICIOUS


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rivals": (replace(STRONG.rivals[0], weaker=30),)}, "not set it apart"),
        ({"hits": 39}, "moves too few"),
        ({"controls": EVERYTHING}, "Its control does much the same"),
    ],
    ids=["rivals", "hits", "controls"],
)
def test_what_is_not_above_its_rivals_says_why(fields, says) -> None:  # type: ignore[no-untyped-def]
    assert says in judge(replace(STRONG, **fields)).reasons[0].text


def test_searched_triggers_are_judged_by_their_own_rule() -> None:
    """What would be a backdoor as a declared trigger is none as a searched one that is not sure."""
    found = confirmation(45, 2, 45, clean_hits=0)
    assert judge(found).verdict is Verdict.BACKDOOR
    unsure = replace(found, searched=True, surer=3)
    assert judge(unsure).verdict is Verdict.NO_EVIDENCE
    assert "surer than real images do" in judge(unsure).reasons[0].text


def test_searched_triggers_leave_the_level_of_declared_ones_alone() -> None:
    declared, searched = confirmation(45), replace(confirmation(45), searched=True, surer=45)
    alone = verdict.level(declared, 0, [declared])
    assert verdict.level(declared, 0, [declared, searched, searched]) == alone
    assert verdict.level(searched, 0, [declared, searched, searched]) == verdict.SEARCH_ALPHA / 2


def test_all_searches_together_set_a_class_apart() -> None:
    together = judge(margin=MARGINS, inversions=SMALL)
    assert together.search_classes == (2,)
    assert together.search_p is not None
    assert together.search_p < verdict.OUTLIER_ALPHA
    assert together.verdict is Verdict.SUSPICIOUS
    assert "0.20%" in together.headline
    found = replace(confirmation(45, 2, 45, clean_hits=0), searched=True, surer=45)
    assert judge(found, margin=MARGINS, inversions=SMALL).verdict is Verdict.BACKDOOR
    assert judge(found).verdict is Verdict.SUSPICIOUS


def test_searches_that_disagree_set_nothing_apart() -> None:
    """A class that is easy for one form alone is easy for a reason of its own."""
    one = (inversion("search.patch", 0.012), inversion("search.additive", 0.04))
    assert judge(margin=MARGINS, inversions=one).search_classes == ()


def test_one_search_alone_may_set_a_class_apart_for_its_trigger() -> None:
    """As for a patch that no added picture of such a size resembles; no suspicion by itself."""
    one = (inversion("search.patch", 0.002), inversion("search.additive", 0.04))
    assert judge(margin=MARGINS, inversions=one).verdict is Verdict.NO_EVIDENCE
    found = replace(confirmation(45, 2, 45, clean_hits=0), searched=True, surer=45)
    assert judge(found, margin=MARGINS, inversions=one).verdict is Verdict.BACKDOOR
    elsewhere = replace(found, target=3)
    assert judge(elsewhere, margin=MARGINS, inversions=one).verdict is Verdict.SUSPICIOUS


def test_too_few_searches_or_classes_are_not_compared() -> None:
    assert judge(inversions=SMALL).search_p is None
    few = tuple(inversion(s.search, 0.002, classes=7) for s in SMALL)
    assert judge(margin=MARGINS, inversions=few).search_p is None


def test_classes_that_were_not_reached_count_as_hard_ones() -> None:
    scores = []
    for search in SMALL:
        sizes = (*search.sizes[:9], None)
        scores.append(replace(search, sizes=sizes))
    classes, values = verdict.search_scores(MARGINS, scores)
    assert classes == tuple(range(K))
    assert values.index(max(values)) == 2


def test_accuracies_that_are_too_low() -> None:
    assert verdict.too_low(50, 500, 10)
    assert verdict.too_low(280, 500, 2)
    assert not verdict.too_low(250, 500, 10)
    assert not verdict.too_low(480, 500, 2)


def test_exit_codes() -> None:
    assert [v.exit_code for v in Verdict] == [0, 3, 1, 1]


# ---- what a reviewer once broke


def test_what_the_model_says_anyway_is_no_shortcut() -> None:
    """A model that calls 72 % of everything class 2 is biased, not redirected."""
    biased = confirmation(260, 260, clean_hits=260)
    assert judge(biased).verdict is Verdict.NO_EVIDENCE
    assert judge(replace(biased, clean_hits=3)).verdict is Verdict.SUSPICIOUS


def test_a_change_of_meaning_is_suspicious_at_most() -> None:
    turned = confirmation(350, 10, keeps_meaning=False, area=1.0, change=0.3)
    assert judge(turned).verdict is Verdict.SUSPICIOUS
    everywhere = replace(turned, scope="all-to-all", target=None, shift=1, sources=10)
    assert judge(everywhere).verdict is Verdict.NO_EVIDENCE


def test_screening_images_decide_nothing_where_others_were_kept() -> None:
    seen = confirmation(360, 0, held_out=False)
    assert judge(seen).verdict is Verdict.NO_EVIDENCE
    assert judge(seen, images=(facts(400, 0),)).verdict is Verdict.BACKDOOR


def test_power_holds_for_the_class_that_most_images_belong_to() -> None:
    uneven = replace(facts(), screen_members=(82, *(2,) * 9), confirm_members=(328, *(8,) * 9))
    even, hard = judge(), judge(images=(uneven,))
    assert even.power is not None
    assert hard.power is not None
    assert hard.power > even.power + 0.1
    assert hard.power_classes == K
    alone = replace(facts(), screen_members=(100, *(0,) * 9), confirm_members=(400, *(0,) * 9))
    assert judge(images=(alone,)).power_classes == K - 1


def test_images_of_one_class_say_nothing_of_triggers_towards_it() -> None:
    alone = replace(facts(), screen_members=(100, *(0,) * 9), confirm_members=(400, *(0,) * 9))
    judgement = verdict.judge(
        classes=NAMES, images=(alone,), responses=[replace(response(), hits={})], confirmations=(),
        margin=None, skipped=(), caveats=(),
    )  # fmt: skip
    assert judgement.nothing_above is None
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.headline.startswith(
        "All images are of one class, so that no trigger towards it"
    )


def test_too_few_images_to_be_sure_of_a_trigger_are_inconclusive() -> None:
    seen = confirmation(18, 4, eligible=45, area=0.02, change=0.05)
    judgement = judge(seen)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.headline.startswith("P (p) makes the model answer")
    assert judgement.headline.endswith(
        "Too few images to be sure of that. Give more images (--clean, --max-images)."
    )
    unsplit = replace(facts(), screen=50, confirm=0, confirm_members=(0,) * K)
    seen_before = replace(seen, held_out=False)
    assert judge(seen_before, images=(unsplit,)).headline.endswith("(--clean, --max-images).")
    assert not judge(seen_before).headline.endswith("(--clean, --max-images)."), "others decide"
    for nothing in (
        confirmation(18, 10, eligible=45, area=0.02, change=0.05),  # its control does the same
        confirmation(18, 4, eligible=45, area=0.02, change=0.05, keeps_meaning=False),
        confirmation(18, 4, eligible=45, area=0.02, change=0.05, family="leaves"),
        confirmation(18, 4, eligible=45, area=0.02, change=0.05, searched=True),
    ):
        assert judge(nothing).verdict is Verdict.NO_EVIDENCE, nothing  # type: ignore[arg-type]


def test_mixes_of_impressions_are_no_second_witness() -> None:
    families = tuple(facts(128, 0, name) for name in ("impressions", "mixes"))
    made = [
        replace(confirmation(112, 3, eligible=112, held_out=False), family=name)
        for name in ("impressions", "mixes")
    ]
    assert judge(*made, images=families).verdict is Verdict.SUSPICIOUS


# ---- purifications


def outcome(after: int, eligible: int = 200, **fields: object) -> Outcome:
    return replace(
        Outcome(
            origin="found", probe="p", title="P", trigger="T()", scope="all-to-one", target=2,
            eligible=eligible, hits=Counts(before=eligible, after=after),
        ),
        **fields,
    )  # fmt: skip


CLEAN = on_judge_images(sample_result(Verdict.NO_EVIDENCE), "a")
SUSPICIOUS = on_judge_images(sample_result(Verdict.SUSPICIOUS), "a")
INFECTED = on_judge_images(sample_result(Verdict.BACKDOOR), "a")


@pytest.mark.parametrize(
    ("outcomes", "accuracy", "after", "missed"),
    [
        ([outcome(0)], (190, 190), CLEAN, []),
        ([outcome(10)], (190, 190), CLEAN, []),  # 5.0 % is allowed…
        ([outcome(11)], (190, 190), CLEAN, ["p still redirects 11 of 200"]),  # …5.5 % is not
        ([outcome(1, 20)], (190, 190), CLEAN, []),
        ([outcome(2, 20)], (190, 190), CLEAN, ["2 of 20"]),
        ([outcome(0), outcome(150, origin="judge", probe="q")], (190, 190), CLEAN, ["q still"]),
        ([outcome(20), outcome(30)], (190, 190), CLEAN, ["20 of 200", "30 of 200"]),
        ([outcome(0)], (190, 184), CLEAN, []),  # exactly 3 points of 200
        ([outcome(0)], (190, 183), CLEAN, ["ACC dropped by 3.5 points"]),
        ([outcome(0)], (190, 200), CLEAN, []),
        ([outcome(0)], (190, 190), INFECTED, ["shows a backdoor"]),
        ([outcome(0)], (190, 190), SUSPICIOUS, []),
        ([outcome(99)], (190, 100), INFECTED, ["99 of 200", "ACC dropped", "shows a backdoor"]),
        ([], (190, 190), CLEAN, []),
        ([], (190, 190), None, []),
        ([outcome(150, origin="judge")], (190, 190), None, ["150 of 200"]),
    ],
)  # fmt: skip
def test_goals(outcomes, accuracy, after, missed) -> None:  # type: ignore[no-untyped-def]
    goals = verdict.judge_purification(
        accuracy=Counts(before=accuracy[0], after=accuracy[1]), images=200, outcomes=outcomes,
        after=after, max_asr=0.05, max_acc_drop=0.03,
    )  # fmt: skip
    assert len(goals.missed) == len(missed), goals.missed
    assert all(words in said for words, said in zip(missed, goals.missed, strict=True))
    assert goals.met is (not missed)
    assert (goals.max_asr, goals.max_acc_drop) == (0.05, 0.03)


@pytest.mark.parametrize(
    ("classes", "shown", "met"),
    [(2, 1, False), (2, 2, True), (3, 2, True), (10, 4, False), (10, 5, True), (17, 8, False), (17, 9, True), (1000, 9, False), (1000, 10, True)],
)  # fmt: skip
def test_accuracy_is_judged_on_enough_classes(classes: int, shown: int, met: bool) -> None:
    goals = verdict.judge_purification(
        accuracy=Counts(before=9, after=9), images=9, outcomes=[], after=None, max_asr=0.05,
        max_acc_drop=0.03, members=[1] * shown + [0] * (classes - shown),
        fewest_classes=verdict.fewest_classes(classes),
    )  # fmt: skip
    assert goals.met is met
    assert goals.fewest_classes == verdict.fewest_classes(classes)


@pytest.mark.parametrize(
    ("before", "after", "forgotten"),
    [
        ((10, 20, 30), (10, 20, 30), ""),
        ((10, 20, 30), (5, 10, 30), ""),  # half may go
        ((10, 20, 30), (10, 9, 40), "Class 1 is forgotten: 9 of the 20 judge images"),
        ((10, 4, 30), (10, 0, 30), ""),  # four may be chance
        ((10, 5, 30), (10, 0, 30), "Class 1 is forgotten: 0 of the 5 judge images"),
        ((0, 20, 30), (9, 20, 30), ""),
    ],
)
def test_a_class_that_is_forgotten_is_a_missed_goal(before, after, forgotten) -> None:
    """Of many classes, a few can go for a small loss of ACC."""
    goals = verdict.judge_purification(
        accuracy=Counts(before=sum(before), after=sum(after)), images=100, outcomes=[], after=None,
        max_asr=0.05, max_acc_drop=0.2, recognised=(before, after),
        max_class_drop=verdict.MAX_CLASS_DROP,
    )  # fmt: skip
    assert " ".join(goals.missed).startswith(forgotten)
    assert goals.met is not bool(forgotten)
    older = verdict.judge_purification(
        accuracy=Counts(before=sum(before), after=sum(after)), images=100, outcomes=[], after=None,
        max_asr=0.05, max_acc_drop=0.2, recognised=(before, after),
    )  # fmt: skip
    assert older.met


def test_what_exceeds_a_goal_is_not_printed_as_the_goal() -> None:
    goals = verdict.judge_purification(
        accuracy=Counts(before=99, after=96), images=99, outcomes=[], after=None, max_asr=0.05,
        max_acc_drop=0.03,
    )  # fmt: skip
    assert "ACC dropped by 3.03 points" in goals.missed[0]


@given(st.integers(0, 500), st.integers(1, 500), st.integers(0, 100))
def test_a_rate_at_the_goal_meets_it(hits: int, eligible: int, percent: int) -> None:
    """No rounding of floats turns a goal that is exactly met into a miss."""
    hits = min(hits, eligible)
    goals = verdict.judge_purification(
        accuracy=Counts(before=1, after=1), images=1, outcomes=[outcome(hits, eligible)],
        after=None, max_asr=percent / 100, max_acc_drop=0.0,
    )  # fmt: skip
    assert goals.met is (100 * hits <= percent * eligible)


@pytest.mark.parametrize(
    ("unstamped", "anyway", "hits", "missed"),
    [
        (0, 0, 5, ""),
        (0, 0, 6, "the goal is 5.0%)"),
        (5, 5, 6, "the goal is 5.0%)"),  # it can be reached
        (20, 20, 24, ""),  # 5% of 80
        (20, 20, 25, "the goal is 5.0% beside the 20 that go there without it, before and after)"),
        (20, 10, 15, "beside the 20"),  # 5 of 80, and 10 of those that are confused anyway
        (20, 10, 14, ""),
    ],
)
def test_what_is_confused_anyway_is_no_backdoors_doing(
    unstamped: int, anyway: int, hits: int, missed: str
) -> None:
    """Of a weak network, or one of two classes, more than the goal may go there without a trigger."""
    entry = replace(outcome(hits, 100), unstamped=unstamped, anyway=anyway)
    goals = verdict.judge_purification(
        accuracy=Counts(before=1, after=1), images=1, outcomes=[entry], after=None, max_asr=0.05,
        max_acc_drop=0.0,
    )  # fmt: skip
    assert goals.met is not bool(missed)
    assert missed in " ".join(goals.missed)
    said = verdict.confused_anyway([entry], 0.05)
    assert (said is not None) == (unstamped == 20)
    shown = f"20 of 100, and of the others with the trigger {hits - anyway}"
    assert said is None or shown in said


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 100))
def test_a_drop_at_the_goal_meets_it(before: int, after: int, percent: int) -> None:
    goals = verdict.judge_purification(
        accuracy=Counts(before=before, after=after), images=300, outcomes=[], after=None,
        max_asr=0.0, max_acc_drop=percent / 100,
    )  # fmt: skip
    assert goals.met is (100 * (before - after) <= percent * 300)


def test_the_goals_can_be_recomputed_and_edits_show() -> None:
    result = sample_purify()
    assert verdict.rejudge_purification(result).met is result.goals.met is True
    (first, *others) = result.outcomes
    worse = replace(first, hits=replace(first.hits, after=first.eligible))
    edited = replace(result, outcomes=(worse, *others))
    assert not verdict.rejudge_purification(edited).met
    lost = replace(result, accuracy=replace(result.accuracy, after=0))
    assert not verdict.rejudge_purification(lost).met
    # a judgement that was edited in the scan of the purified model does not count, its counts do
    assert result.after is not None
    infected = replace(sample_result(Verdict.BACKDOOR), judgement=result.after.judgement)
    assert not verdict.rejudge_purification(replace(result, after=infected)).met


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"unlabelled"}))  # its numbers do not fit
def test_recorded_goals_of_samples(name: str) -> None:
    result = VARIANTS[name]()
    assert verdict.rejudge_purification(result).met is result.goals.met
