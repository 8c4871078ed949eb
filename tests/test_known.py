"""Which triggers a purifier is told of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from auditor.measure import Stamped
from auditor.purification.known import MOST_KIN, shown_triggers
from auditor.results.facts import Verdict
from auditor.results.scan import Confirmation, ScanResult
from auditor.triggers import Trigger
from auditor.triggers.blend import Blend
from auditor.triggers.patch import Square
from tests.sample_result import sample_result

SHOWN = Blend(picture="face", alpha=0.15)
OTHER = Blend(picture="rings")


def entry(trigger: Trigger, hits: int = 45, **fields: object) -> Confirmation:
    """A confirmation with 45 images, by default each of them moved to class 9."""
    (like, *_) = sample_result().confirmations
    values = {"target": 9, "eligible": 45, "keeps_meaning": True, **fields}
    return replace(like, trigger=repr(trigger), hits=hits, **values)


def scanned(shown: Confirmation, *others: Confirmation) -> ScanResult:
    result = sample_result()
    (reason, *_) = result.judgement.reasons
    judgement = replace(result.judgement, reasons=(replace(reason, confirmation=0),))
    return replace(result, confirmations=(shown, *others), judgement=judgement)


def told(result: ScanResult, *triggers: Trigger) -> list[Trigger]:
    stamped = [Stamped(probe="p", title="P", trigger=trigger) for trigger in triggers]
    return [known.stamped.trigger for known in shown_triggers(result, stamped)]


def test_what_works_as_a_shown_trigger_does_is_unlearnt_too() -> None:
    """The attacker's own picture may be one that its controls do as much as."""
    result = scanned(entry(SHOWN, 41), entry(OTHER, held_out=False))
    assert [reason.verdict for reason in result.judgement.reasons] == [Verdict.BACKDOOR]
    assert told(result, SHOWN, OTHER) == [SHOWN, OTHER]
    assert told(scanned(entry(SHOWN), entry(Square())), SHOWN, Square()) == [SHOWN, Square()]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(entry(OTHER, 35), id="too few follow it"),
        pytest.param(entry(OTHER, 0, eligible=0), id="nobody could"),
        pytest.param(entry(OTHER, clean_hits=36), id="those images go there anyway"),
        pytest.param(entry(OTHER, searched=True), id="a search made it"),
        pytest.param(entry(OTHER, family="noise"), id="on made images"),
        pytest.param(entry(OTHER, target=3), id="to another class"),
        pytest.param(entry(OTHER, source=2, scope="source-specific"), id="of one class"),
        pytest.param(entry(OTHER, keeps_meaning=False), id="an image is another thing then"),
    ],
)
def test_what_does_not_is_left_alone(other: Confirmation) -> None:
    assert told(scanned(entry(SHOWN), other), SHOWN, OTHER) == [SHOWN]


def test_a_trigger_of_one_class_has_no_kin() -> None:
    shown = entry(SHOWN, source=2, scope="source-specific")
    assert told(scanned(shown, entry(OTHER)), SHOWN, OTHER) == [SHOWN]


def test_the_most_obeyed_of_them_count() -> None:
    pictures = [Blend(seed=seed) for seed in range(1, MOST_KIN + 2)]
    entries = [entry(picture, 36 + number) for number, picture in enumerate(pictures)]
    assert told(scanned(entry(SHOWN), *entries), SHOWN, *pictures) == [SHOWN, *pictures[:0:-1]]
