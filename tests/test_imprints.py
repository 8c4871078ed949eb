"""What triggers leave in the last layer's input: measured, added, and unlearnt there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from auditor.classifier import Classifier, as_float
from auditor.inputs import blank_spec
from auditor.measure import Stamped
from auditor.models.load import load_model
from auditor.progress import silent
from auditor.purifiers import informed
from auditor.purifiers.base import Known, Task, changed_classifier, measured
from auditor.purifiers.features import anchor_layers
from auditor.purifiers.imprints import FARTHEST, Imprints
from auditor.purifiers.informed import Attempt, Informed
from auditor.results.facts import Output
from auditor.triggers.patch import Block, Patch
from tests.changeable import CLASSES, TARGET
from tests.exported import FORMATS, exported, reopened
from tests.planted import drawings, handle

IMAGES, LABELS = drawings(96, CLASSES)
WHITE = ((255,) * 3,) * 3
HERE = Patch(blocks=(Block(at=(-3, -3), cells=WHITE),))
THERE = Patch(blocks=(Block(at=(5, 5), cells=WHITE),))
"""Another trigger of the same backdoor."""
TO_ONE = tuple(-1 if label == TARGET else TARGET for label in range(CLASSES))
TO_NEXT = tuple((label + 1) % CLASSES for label in range(CLASSES))


def network(head: nn.Module | None = None) -> nn.Sequential:
    """Hidden units 0 to 7 are the cells; the last is a backdoor's, which fires on white in two corners."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 2, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES + 1), nn.ReLU(),
        head or nn.Linear(CLASSES + 1, CLASSES),
    )  # fmt: skip
    convolution, cells = made[0], made[3]
    with torch.no_grad():
        convolution.weight[0], convolution.bias[0] = 1 / 192, 0.0
        convolution.weight[1], convolution.bias[1] = 0.0, -9.0
        convolution.weight[1, :, -3:, -3:] = 10 / 27
        blocks = cells.weight.zero_().view(CLASSES + 1, 2, 4, 4)
        cells.bias.zero_()
        for label in range(CLASSES):
            row, column = divmod(label, 4)
            blocks[label, 0, 2 * row : 2 * row + 2, column] = 1.0
        blocks[CLASSES, 1, -1, -1] = blocks[CLASSES, 1, 0, 0] = 1.0
        if head is None:
            made[5].weight.copy_(6 * torch.eye(CLASSES + 1)[:CLASSES])
            made[5].weight[TARGET, CLASSES] = 6.0
            made[5].bias.zero_()
    return made.eval()


def known(trigger: Patch = HERE, mapping: tuple[int, ...] = TO_ONE) -> Known:
    return Known(stamped=Stamped(probe="p", title="P", trigger=trigger), mapping=mapping)


def suspect(made: nn.Module, output: Output = "logits") -> Classifier:
    return Classifier(handle(made), blank_spec((3, 32, 32)), output=output)


def measure(classifier: Classifier, *entries: Known, labels: Tensor = LABELS) -> Imprints | None:
    features = anchor_layers(classifier, IMAGES)[-1]
    return Imprints.measured(classifier, entries or (known(),), IMAGES, labels, features)


def found(classifier: Classifier, *entries: Known, labels: Tensor = LABELS) -> Imprints:
    """The same, where there are some."""
    imprints = measure(classifier, *entries, labels=labels)
    assert imprints is not None
    return imprints


def test_it_is_how_far_the_trigger_pushes() -> None:
    imprints = found(suspect(network()))
    # as far as white is above the threshold
    assert torch.allclose(imprints._pushes[1, CLASSES], torch.ones(()), atol=1e-4)
    # the square lies in the last class's cell, and brightens it a little
    assert imprints._pushes[1, : CLASSES - 1].abs().max() == 0
    assert 0 < imprints._pushes[1, CLASSES - 1] < 0.2
    assert imprints._rows[0].tolist() == [0 if label == TARGET else 1 for label in range(CLASSES)]


def test_images_that_go_to_different_classes_are_not_averaged() -> None:
    made = network()
    imprints = found(suspect(made), known(), known(mapping=TO_NEXT))
    push = pushed(made)
    for label in range(CLASSES):
        row = imprints._pushes[imprints._rows[1, label]]
        assert torch.allclose(row, push[label == LABELS].mean(0), atol=1e-5)
    to_one = imprints._pushes[imprints._rows[0, 0]]
    assert torch.allclose(to_one, push[LABELS != TARGET].mean(0), atol=1e-5)
    assert not torch.allclose(to_one, push[LABELS == CLASSES - 1].mean(0), atol=1e-3)


@torch.no_grad()
def pushed(made: nn.Sequential) -> Tensor:
    return made[:5](stamped()) - made[:5](as_float(IMAGES))


@pytest.mark.parametrize("times", [0.0, 0.5, 1.0])
def test_added_scores_are_those_of_pushed_features(
    times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network()
    classifier = suspect(made)
    imprints = found(classifier)
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, times))
    with torch.no_grad():
        features = made[:5](as_float(IMAGES))
        pushed = features + FARTHEST * times * imprints._pushes[imprints._rows[0, LABELS]]
        wanted = made[5](pushed) - made[5](features)
    added = imprints.added(classifier.model.weights(), LABELS, torch.Generator())
    assert torch.allclose(added, wanted, atol=1e-4)
    assert bool(added.any()) == (times > 0)


def test_every_trigger_has_its_turn() -> None:
    classifier = suspect(network())
    imprints = found(classifier, known(), known(THERE))
    labels = torch.zeros(200, dtype=torch.int64)
    weights = {"5.weight": torch.eye(CLASSES + 1)[:CLASSES]}
    assert imprints.reach(weights)
    added = imprints.added(weights, labels, torch.Generator().manual_seed(0))
    bright = torch.tensor([CLASSES - 1, 0])  # the cells in which the two squares lie
    assert ((added[:, bright] > 0).sum(1) == 1).all()
    assert 60 < int((added[:, 0] > 0).sum()) < 140
    farthest = added[:, 0].max() / imprints._pushes[2, 0]
    assert 0.9 * FARTHEST < farthest <= FARTHEST


class Bent(nn.Linear):
    """A head whose answers are no matrix of its input."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).tanh()


class Times(nn.Module):
    """A head whose weight has its outputs in columns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(network()[5].weight.detach().T.contiguous())

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight


class Helped(nn.Module):
    """A head beside which another one is there, defined last, that gives no scores."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = network()[:5]
        self.head = network()[5]
        self.aux = nn.Linear(CLASSES + 1, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        return 1e-9 * self.aux(features).mean() + self.head(features)


class Pooled(nn.Module):
    """A convolution gives the scores of every place, and their mean counts."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 4, stride=4)
        self.scores = nn.Conv2d(4, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.features(images).relu()).mean((2, 3))


def test_convolutions_that_give_the_scores_count() -> None:
    torch.manual_seed(0)
    made = Pooled().eval()
    imprints = found(suspect(made))
    with torch.no_grad():
        push = made.features(stamped()).relu() - made.features(as_float(IMAGES)).relu()
    wanted = push.mean((2, 3))[LABELS != TARGET].mean(0)
    assert torch.allclose(imprints._pushes[1], wanted, atol=1e-5)


def stamped() -> Tensor:
    return HERE(as_float(IMAGES))


def test_what_is_no_matrix_is_left_alone() -> None:
    assert measure(suspect(network(Bent(CLASSES + 1, CLASSES)))) is None


def test_triggers_that_concern_no_image_leave_nothing() -> None:
    assert measure(suspect(network()), known(mapping=(-1,) * CLASSES)) is None


class Coarse(nn.Linear):
    """A head with few digits."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).bfloat16().float()


def test_a_trigger_that_hardly_does_anything_does_not_hide_the_others() -> None:
    coarse = Coarse(CLASSES + 1, CLASSES)
    coarse.load_state_dict(network()[5].state_dict())
    faint, made = Patch(blocks=(Block(at=(0, 0), cells=((0,),)),)), suspect(network(coarse))
    assert measure(made, known(faint)) is None
    imprints = found(made, known(), known(faint))
    assert imprints._pushes[1].norm() > 100 * imprints._pushes[2].norm() > 0


@pytest.mark.parametrize("classes", [CLASSES, 3])
def test_the_head_is_the_layer_that_reads_the_features(classes: int, tmp_path: Path) -> None:
    made = Helped(classes).eval()
    plain = found(suspect(network()))
    imprints = found(suspect(made))
    assert torch.allclose(imprints._pushes, plain._pushes)
    assert imprints.reach({"head.weight": made.head.weight})
    # compiled, its values have other names than its layers, and the last one is not the head
    assert measure(reopened("traced", made, tmp_path)) is None


def test_columns_of_outputs(tmp_path: Path) -> None:
    has_the_same(reopened("onnx", nn.Sequential(*network()[:5], Times()), tmp_path))


@pytest.mark.parametrize("size", [5, 64])
def test_batches_of_one_size(size: int, tmp_path: Path) -> None:
    path = exported(network(), tmp_path / "m.onnx", fixed=size)
    has_the_same(Classifier(load_model(path), blank_spec((3, 32, 32))))


class Twice(nn.Module):
    """It asks its head twice, so that there are two rows of features an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = network()[:5], network()[5]

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        scores: Tensor = self.head(features)
        return scores + 0 * self.head(features)


def test_rows_that_are_not_the_images_are_no_features() -> None:
    made = suspect(Twice().eval())
    assert Imprints.measured(made, [known()], IMAGES, LABELS, "head") is None


@pytest.mark.parametrize("scale", [1, 50])
def test_probabilities_that_end_at_a_floor_are_no_obstacle(scale: int) -> None:
    plain = network()
    with torch.no_grad():
        plain[5].weight.mul_(scale)
    imprints = found(suspect(plain))
    same = found(suspect(nn.Sequential(*plain, nn.Softmax(1)).eval(), "probabilities"))
    assert torch.allclose(imprints._pushes, same._pushes)


@pytest.mark.parametrize("scale", [1, 50])
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_one_number_is_that_of_two_classes(output: Output, scale: int) -> None:
    made = network(nn.Linear(CLASSES + 1, 1))
    with torch.no_grad():
        made[5].weight.copy_(scale * torch.tensor([[1.0, -1.0] * 4 + [12.0]]))
    whole = made if output == "logit" else nn.Sequential(*made, nn.Sigmoid()).eval()
    labels = LABELS % 2
    imprints = found(suspect(whole, output), known(mapping=(-1, 0)), labels=labels)
    weights = {"5.weight": made[5].weight.detach()}
    added = imprints.added(weights, labels, torch.Generator().manual_seed(0))
    assert added.shape == (len(labels), 2)
    assert not added[labels == 0].any()
    push = pushed(made)[labels == 1].mean(0)
    times = (added[:, 1] - added[:, 0])[labels == 1] / (made[5].weight @ push)
    assert ((times >= 0) & (times <= FARTHEST)).all()
    assert times.max() > 0.8 * FARTHEST


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_the_same(kind: str, tmp_path: Path) -> None:
    has_the_same(reopened(kind, network(), tmp_path))


def has_the_same(classifier: Classifier) -> None:
    """Of another file of `network`."""
    imprints, plain = found(classifier), found(suspect(network()))
    assert torch.allclose(imprints._pushes, plain._pushes, atol=1e-4)
    added, own = (
        one.added(model.weights(), LABELS, torch.Generator().manual_seed(1))
        for one, model in ((imprints, classifier.model), (plain, suspect(network()).model))
    )
    assert torch.allclose(added, own, atol=1e-3)


# ---- used


def task(*entries: Known) -> Task:
    return Task(
        classifier=suspect(network()), images=IMAGES, labels=LABELS, classes=CLASSES, known=entries,
        max_asr=0.05, max_acc_drop=0.03, seed=0,
    )  # fmt: skip


def test_the_last_layer_learns_to_ignore_them() -> None:
    told, falls = task(known()), []
    imprints = found(told.classifier)

    def heard(weight: Tensor) -> float:
        scores = imprints._pushes[1] @ weight.T
        return float((scores - scores.mean()).norm())

    before = heard(told.classifier.model.weights()["5.weight"])
    for share in (0.0, 0.25):
        run = informed._Run(Informed(imprints=share), told, silent)
        made = run.attempt(Attempt(what="weights", lr=0.005, steps=100)).made
        after = changed_classifier(told.classifier, made.tensors)
        assert measured(after, IMAGES, LABELS, [known(), known(THERE)]) == (1.0, [0.0, 0.0])
        falls.append(before - heard(made.tensors["5.weight"]))
    assert falls[1] > 4 * falls[0] > 0


def test_they_are_measured_on_the_images_that_are_fitted_on() -> None:
    told = task(known(mapping=TO_NEXT))
    run = informed._Run(Informed(), told, silent)
    measured_on = Imprints.measured(
        told.classifier, told.known, IMAGES[run.fit], LABELS[run.fit], run.layers[-1]
    )
    assert run.imprints is not None
    assert measured_on is not None
    assert torch.equal(run.imprints._pushes, measured_on._pushes)
    assert not torch.equal(run.imprints._pushes, found(told.classifier, *told.known)._pushes)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_pushed_images_shall_look_as_they_did(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss, part by part, of the suspect itself: stamped images are not as they should be."""
    run = informed._Run(
        Informed(imprints=share, stamped=1 / 3, features=0.0), task(known()), silent
    )
    divergence, parts, of = informed._divergence, [], []

    def told(logits: Tensor, wanted: Tensor) -> Tensor:
        parts.append((logits, wanted, divergence(logits, wanted)))
        return parts[-1][2]

    def added(imprints: Imprints, tensors: object, labels: Tensor, generator: object) -> Tensor:
        of.append(labels)
        return 3.0 * torch.eye(CLASSES)[:1].expand(len(labels), -1)

    monkeypatch.setattr(informed, "_divergence", told)
    monkeypatch.setattr(Imprints, "added", added)
    monkeypatch.setattr(informed, "shifted", lambda images, *_, **__: images)
    monkeypatch.setattr(informed, "mixed", lambda images, _: images)
    with run.classifier.model.tapped(run.layers) as features:
        loss = run._loss(
            run.classifier.model.weights(), [HERE], features, 24,
            Attempt(what="weights", lr=0.0, steps=1), torch.Generator().manual_seed(0),
        )  # fmt: skip
    (logits, wanted, whole), (more, plain, pushed_only) = parts
    assert float(loss) == pytest.approx(float(whole + share * pushed_only) / 24, rel=1e-5)
    assert torch.equal(plain, wanted[:16])
    assert torch.equal(plain.argmax(1), of[0])
    assert torch.equal(logits[:16].argmax(1), of[0])
    assert torch.allclose(more - logits[:16], 3.0 * torch.eye(CLASSES)[:1], atol=1e-5)
    assert (logits[16:].argmax(1) == TARGET).all()
    assert not torch.equal(wanted[16:].argmax(1), of[0][:8])


@pytest.mark.parametrize("forgets", [TARGET, TARGET - 1])
def test_what_forgets_its_target_is_made_again_without_imprints(
    forgets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = informed._Run(Informed(), task(known()), silent)
    candidate = run.scales.candidate

    def told(tensors: dict[str, Tensor], aim: float) -> Any:
        made = candidate(tensors, aim)
        return replace(made, forgotten=(forgets,)) if aim == 1 else made

    monkeypatch.setattr(run.scales, "candidate", told)
    masks = Attempt(what="masks", lr=1e-4, steps=1, acc_aim=1)
    good, bad = (Attempt(what="weights", lr=1e-4, steps=1, acc_aim=aim) for aim in (0.5, 1))
    outcomes = list(run.each([masks, good, bad, good, bad]))
    made = [(outcome.attempt, outcome.imprints > 0) for outcome in outcomes]
    if forgets == TARGET:
        assert made == [
            (masks, False), (good, True), (bad, True), (bad, False), (good, False), (bad, False),
        ]  # fmt: skip
    else:
        assert made == [(masks, False), *((attempt, True) for attempt in (good, bad, good, bad))]
    said = [outcome.stage(outcomes[0]).settings.get("imprints") for outcome in outcomes]
    assert said == [None if attempt is masks else "0.1" if used else "0" for attempt, used in made]


def test_masks_do_not_reach_the_last_layer() -> None:
    imprints = found(suspect(network()))
    assert not imprints.reach({"1.weight": torch.ones(2)})
