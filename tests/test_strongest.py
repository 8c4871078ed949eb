"""How strong a method may be: by clean accuracy on kept-back images, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from auditor.purifiers.base import parted
from auditor.purifiers.strongest import ACC_SHARE, Candidate, bisected, strongest
from tests.changeable import CLASSES, WHITE, classifier
from tests.test_purifiers import task

MADE: list[str] = []


def candidate(name: str, lost: float) -> Candidate:
    """A network that answers class 0 for the images of so many of the eight classes."""
    weight = dict(classifier().named_parameters())["7.weight"].detach().clone()
    bias = torch.zeros(CLASSES)
    bias[CLASSES - round(lost * CLASSES) :] = -1e3
    MADE.append(name)
    return Candidate(
        settings={"strength": name}, tensors={"7.weight": weight, "7.bias": bias}, run=(5, 80, 1.0)
    )


def row(*losses: float) -> list[Callable[[], Candidate]]:
    MADE.clear()
    return [lambda name=str(n), lost=lost: candidate(name, lost) for n, lost in enumerate(losses)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("losses", "taken", "holds"),
    [
        ((0.0, 0.0, 0.0), "0", True),
        ((0.5, 0.0, 0.0), "1", True),
        ((0.5, 0.5, 0.0), "2", True),
        ((0.75, 0.5, 0.25), "2", False),
        ((0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0), "3", True),
    ],
)
def test_the_strongest_that_accuracy_bears(
    losses: tuple[float, ...], taken: str, holds: bool
) -> None:
    told = task(classifier(), WHITE)
    chosen = strongest(told, (make() for make in row(*losses)))
    assert chosen.candidate.settings == {"strength": taken}
    assert chosen.holds is holds
    assert [str(n) for n in range(int(taken) + 1)] == MADE, "no further than needed"
    halves = bisected(told, row(*losses))
    assert halves.candidate.settings == {"strength": taken}
    assert halves.holds is holds
    assert len(MADE) <= len(losses).bit_length()


def test_images_that_are_learnt_by_heart_choose_nothing() -> None:
    """Any strength holds on them: with one of each of 17 classes, FST's 0.2 left 25% ACC of 99.6."""
    told = task(classifier(), WHITE)
    few = task(classifier(), WHITE, images=told.images[:20], labels=told.labels[:20])
    chosen = bisected(few, row(0.0, 0.0, 0.5, 0.25))
    assert (MADE, chosen.candidate.settings) == (["3"], {"strength": "3"})
    assert [stage.kept for stage in chosen.stages("weights")] == [True]


def test_where_none_holds_the_one_that_costs_least_is_taken() -> None:
    told = task(classifier(), WHITE)
    for lost in ((0.25, 0.5, 0.75), (0.75, 0.25, 0.5)):
        chosen = strongest(told, (make() for make in row(*lost)))
        assert chosen.candidate.settings == {"strength": str(lost.index(0.25))}
        assert not chosen.holds
        assert [stage.kept for stage in chosen.stages("weights")] == [x == 0.25 for x in lost]
        assert all("beyond the loss" in stage.outcome for stage in chosen.stages("weights"))


def test_what_is_allowed_is_a_share_of_the_goal() -> None:
    one = 1 / CLASSES
    for allowed, holds in ((one / ACC_SHARE + 0.05, True), (one * ACC_SHARE - 0.05, False)):
        told = task(classifier(), WHITE, max_acc_drop=allowed)
        assert strongest(told, [candidate("a", one)]).holds is holds


def test_numbers_that_are_none_are_never_taken() -> None:
    broken = Candidate(
        settings={"strength": "nan"}, tensors={"7.bias": torch.full((CLASSES,), torch.nan)}
    )
    chosen = strongest(task(classifier(), WHITE), [broken, candidate("fine", 0.0)])
    assert chosen.candidate.settings == {"strength": "fine"}
    assert chosen.trials[0].check.acc == 0


def test_only_the_kept_back_images_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    told = task(classifier(), WHITE)
    parts = parted(len(told.images), told.seed)
    assert parts.apart
    spoilt = told.labels.clone()
    spoilt[parts.fit] = (spoilt[parts.fit] + 1) % CLASSES
    seen = task(classifier(), WHITE, labels=spoilt)
    assert strongest(seen, [candidate("a", 0.0)]).accuracy == 1

    def all_wrong(labels: Tensor) -> Tensor:
        return (labels + 1) % CLASSES

    wrong = task(classifier(), WHITE, labels=all_wrong(told.labels))
    assert strongest(wrong, [candidate("a", 0.0)]).accuracy == 0


def test_stages_say_what_was_tried() -> None:
    told = task(classifier(), WHITE)
    chosen = strongest(told, (make() for make in row(0.5, 0.0)))
    first, second = chosen.stages("weights")
    assert (first.kept, second.kept) == (False, True)
    assert (second.steps, second.images, second.seconds) == (5, 80, 1.0)
    assert "strength 0: ACC 100.0% to" in first.outcome
    assert "beyond the loss" in first.outcome
    assert "within the loss" in second.outcome
    whole = chosen.stage("pruning", (7, 70, 2.0))
    assert (whole.steps, whole.images, whole.kept) == (7, 70, True)
    assert [check.step for check in whole.checks] == [1, 2]
    assert whole.settings == {"strength": "1"}
    few = task(classifier(), WHITE, images=told.images[:20], labels=told.labels[:20])
    (stage,) = strongest(few, [candidate("a", 0.0)]).stages("weights")
    assert "too few to keep some back" in stage.outcome


def test_there_must_be_a_candidate() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        strongest(task(classifier(), WHITE), [])
