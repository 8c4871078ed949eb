"""Predictions before, after and under control -> counts.

One hypothesis is a map from classes to target classes: all-to-one sends every class but one to
that one, source-specific sends one class, all-to-all each to its own. A hit is an image whose
prediction under the trigger is what the map says of its class. Classes are labels where there
are labels, and clean predictions elsewhere; images that the map leaves alone do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor import verdict
from auditor.classifier import UNDECIDED, Classifier, as_float, decided, synchronize
from auditor.errors import ProbeError
from auditor.progress import Notify, silent
from auditor.results.facts import ImageFacts
from auditor.results.scan import Confirmation, ControlCount, Response, RivalCount, Scope
from auditor.triggers.base import Trigger

FOOTPRINT_IMAGES = 8
TRIED_IMAGES = 2
"""Images on which it is seen whether a trigger can be stamped."""
VISIBLE = 1.5 / 255
"""A pixel that changes by more counts as changed."""
CONTROLS = 4
CELL_ABOVE_OVERALL = 0.25
"""A source class is a hypothesis of its own where it goes to the target so much more often."""
ALIKE = 0.01
"""Margins that differ by no more than this share of the largest are the same."""
MOST_TO_ONE = 0.5
"""Where more of the classes that follow a fitted map go to one target, it is all-to-one with strays."""
MAX_CELLS = 5
"""Source-specific hypotheses a trigger; the strongest ones."""
PROGRESS_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Half:
    """Images that serve one purpose, with what the model says of them unstamped."""

    images: Tensor
    """``(N, C, H, W)`` uint8 on the classifier's device."""
    groups: Tensor
    """``(N,)`` int64 on the CPU: labels, or clean predictions where there are none."""
    before: Tensor
    """``(N,)`` int64 on the CPU: clean predictions."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of images: a half to screen on, and one to confirm on that the screen never sees.

    Where there are too few to split, both are the same images and `held_out` is False.
    """

    facts: ImageFacts
    screen: Half
    confirm: Half
    held_out: bool

    @property
    def name(self) -> str:
        """Which kind of images: "clean" for a user's."""
        return self.facts.family


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What a trigger might do: a map of classes, -1 where a class is left alone."""

    scope: Scope
    mapping: tuple[int, ...]
    target: int | None = None
    source: int | None = None
    shift: int | None = None
    rate: float = 0.0
    """Share of the screening images that follow the map."""


@dataclass(frozen=True, kw_only=True)
class Stamped:
    """A trigger with where it comes from."""

    probe: str
    title: str
    trigger: Trigger


Rival = tuple[int, Trigger, Tensor]
"""Another class, the trigger that was searched for it, and ``(N,)`` bool, where it is the weaker one."""


@torch.inference_mode()
def predictions(
    classifier: Classifier,
    images: Tensor,
    triggers: Sequence[Trigger],
    *,
    notify: Callable[[int], None] = lambda done: None,
    deadline: float = float("inf"),
) -> Tensor:
    """Predicted classes under every trigger, one forward pass an image and trigger.

    Batches run across triggers, so that few images still fill a GPU.

    Args:
        classifier: The suspect.
        images: ``(N, C, H, W)`` uint8 on its device.
        triggers: T of them.
        notify: Called with the number of finished triggers.
        deadline: `time.monotonic` value after which no batch is started.

    Returns:
        ``(T', N)`` int64 on the CPU, `UNDECIDED` where the scores name no class; T' < T where the
        deadline came first.
    """
    count, total = len(images), len(triggers) * len(images)
    if not total:
        return torch.empty((len(triggers), count), dtype=torch.int64)
    found = torch.empty(total, dtype=torch.int64, device=classifier.device)
    position, reported = 0, time.monotonic()
    while position < total and time.monotonic() < deadline:
        stop = min(position + classifier.batch_size, total)
        logits = classifier.guarded(lambda: _block(triggers, images, position, stop))  # noqa: B023
        if logits is None:
            continue
        found[position:stop] = decided(logits)
        position = stop
        if time.monotonic() - reported > PROGRESS_SECONDS:
            synchronize(classifier.device)
            notify(position // count)
            reported = time.monotonic()
    finished = position // count
    notify(finished)
    return found[: finished * count].view(finished, count).cpu()


def _block(triggers: Sequence[Trigger], images: Tensor, start: int, stop: int) -> Tensor:
    """Stamped images number `start` to `stop` of all triggers' images, one after the other."""
    count = len(images)
    parts = [
        triggers[index](as_float(images[max(start - index * count, 0) : stop - index * count]))
        for index in range(start // count, -(-stop // count))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.inference_mode()
def footprint(trigger: Trigger, images: Tensor) -> tuple[float, float]:
    """Share of visibly changed pixels, and root mean square change in [0, 1] units.

    Args:
        trigger: What to stamp.
        images: ``(N, C, H, W)`` uint8; the first few are used.
    """
    before = as_float(images[:FOOTPRINT_IMAGES])
    change = trigger(before) - before
    area = (change.abs().amax(1) > VISIBLE).float().mean()
    return float(area), float(change.square().mean().sqrt())


def inapplicable(trigger: Trigger, images: Tensor, *, controlled: bool = True) -> str:
    """Why a trigger, or a control of it, cannot be stamped on images like these; empty where it can.

    Args:
        trigger: What to stamp.
        images: ``(N, C, H, W)`` uint8; the first few are used.
        controlled: It will be held against its controls.
    """
    few = as_float(images[:TRIED_IMAGES])
    controls = []
    try:
        stamped = trigger(few)
        if controlled:
            controls = [control(few) for control in matched_controls(trigger)]
    except ProbeError as error:
        return str(error)
    if not torch.equal(stamped, few) and any(torch.equal(stamped, other) for other in controls):
        return "a control of it does the same on these images, so that nothing could be shown"
    return ""


def response(
    stamped: Stamped, family: Family, after: Tensor, classes: int, *, unlike: bool = False
) -> Response:
    """Count what a trigger did to the screening images.

    Args:
        stamped: The trigger.
        family: The images.
        after: ``(N,)`` predictions of the stamped screening images.
        classes: K.
        unlike: See `scanning.alone.unlike_alone`.
    """
    half = family.screen
    hits = moved_to(half.groups, after, classes)
    area, change = footprint(stamped.trigger, half.images)
    return Response(
        probe=stamped.probe,
        trigger=repr(stamped.trigger),
        family=family.name,
        images=len(half),
        hits={int(k): int(hits[k]) for k in hits.nonzero().flatten()},
        flips=int((after != half.before).sum()),
        area=area,
        change=change,
        unanswered=int((after == UNDECIDED).sum()),
        unlike=unlike,
    )


def moved_to(groups: Tensor, after: Tensor, classes: int) -> Tensor:
    """Images of other classes that are predicted as each class, ``(K,)``; arguments as `cross_table`."""
    moved = after[(after != groups) & (after != UNDECIDED)]
    return torch.bincount(moved, minlength=classes)


def cross_table(groups: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Images of each class that are predicted as each, ``(K, K)`` int64; without the undecided.

    Args:
        groups: ``(N,)`` class of each image.
        predicted: ``(N,)`` class that it is predicted as, or `UNDECIDED`.
        classes: K.
    """
    cells = (groups * classes + predicted)[predicted != UNDECIDED]
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def recognised(labels: Tensor, predicted: Tensor, classes: int) -> list[int]:
    """Rightly classified images a class; arguments as of `cross_table`."""
    return torch.bincount(labels[predicted == labels], minlength=classes).tolist()


def hypotheses(groups: Tensor, after: Tensor, classes: int, *, held_out: bool) -> list[Hypothesis]:
    """What a trigger may be doing, by the screening images, strongest first.

    Args:
        groups: ``(N,)`` class of each image.
        after: ``(N,)`` prediction of each stamped image.
        classes: K.
        held_out: Other images are there to confirm on; maps and cells are picked by looking, so
            they are only proposed then.
    """
    table = cross_table(groups, after, classes).double()
    members = torch.bincount(groups, minlength=classes).double()
    total = len(groups)
    found = _all_to_one(table, members, total)
    overall = {hypothesis.target: hypothesis.rate for hypothesis in found}
    if classes > 2:
        found += _shifts(table, total, members)
        if held_out:
            found += _fitted_map(groups, after, classes)
    if held_out:
        found += _cells(table, members, overall)
    return sorted(found, key=lambda hypothesis: -hypothesis.rate)


def all_to_one(target: int, classes: int, rate: float = 0.0) -> Hypothesis:
    """Every class but the target goes to the target."""
    mapping = tuple(-1 if source == target else target for source in range(classes))
    return Hypothesis(scope="all-to-one", mapping=mapping, target=target, rate=rate)


def _all_to_one(table: Tensor, members: Tensor, total: int) -> list[Hypothesis]:
    classes = len(table)
    hits = table.sum(0) - table.diagonal()
    eligible = total - members
    rates = hits / eligible.clamp_min(1)
    return [
        all_to_one(int(k), classes, float(rates[k]))
        for k in (rates >= verdict.SCREEN_RATE).nonzero().flatten()
    ]


def _shifts(table: Tensor, total: int, members: Tensor) -> list[Hypothesis]:
    classes = len(table)
    source = torch.arange(classes)
    if not _enough_sources(members, classes):
        return []
    found = []
    for shift in range(1, classes):
        rate = float(table[source, (source + shift) % classes].sum()) / total
        if rate >= verdict.SCREEN_RATE:
            mapping = tuple((c + shift) % classes for c in range(classes))
            found.append(Hypothesis(scope="all-to-all", mapping=mapping, shift=shift, rate=rate))
    return found


def _fitted_map(groups: Tensor, after: Tensor, classes: int) -> list[Hypothesis]:
    """The best map of classes, fitted on one half of the screening images, scored on the other."""

    def fitted(part: slice) -> Tensor:
        table = cross_table(groups[part], after[part], classes).fill_diagonal_(0)
        best = table.argmax(1)
        best[table.amax(1) == 0] = -1
        return best

    half = len(groups) // 2
    mapping = fitted(slice(half, None))
    rate = float(follows(mapping, groups[:half], after[:half]).float().mean())
    members = torch.bincount(groups, minlength=classes)
    targets = set(mapping.tolist()) - {-1}
    if rate < verdict.SCREEN_RATE or len(targets) < 3 or not _enough_sources(members, classes):
        return []
    best = fitted(slice(None))
    follow = 2 * torch.bincount(groups[follows(best, groups, after)], minlength=classes) > members
    shared = torch.bincount(best[follow], minlength=classes)
    if shared.max() > MOST_TO_ONE * shared.sum():
        return []
    whole = tuple(best.tolist())
    shifts = {(k - c) % classes for c, k in enumerate(whole) if k >= 0}
    if len(shifts) == 1:
        return []
    return [Hypothesis(scope="all-to-all", mapping=whole, rate=rate)]


def _cells(table: Tensor, members: Tensor, overall: Mapping[int | None, float]) -> list[Hypothesis]:
    """Source classes that go to a target more than all classes together do."""
    classes = len(table)
    rates = table / members.clamp_min(1).unsqueeze(1)
    rates.fill_diagonal_(0)
    rates[members < verdict.SCREEN_CELL_IMAGES] = 0
    found = []
    for source, target in (rates >= verdict.SCREEN_CELL_RATE).nonzero().tolist():
        if float(rates[source, target]) < overall.get(target, 0.0) + CELL_ABOVE_OVERALL:
            continue
        mapping = tuple(target if c == source else -1 for c in range(classes))
        found.append(
            Hypothesis(
                scope="source-specific",
                mapping=mapping,
                target=target,
                source=source,
                rate=float(rates[source, target]),
            )
        )
    return sorted(found, key=lambda hypothesis: -hypothesis.rate)[:MAX_CELLS]


def _enough_sources(members: Tensor, classes: int) -> bool:
    return int((members >= 1).sum()) >= verdict.enough_sources(classes, verdict.FEWEST_MAPPED)


def confirmation(
    stamped: Stamped,
    hypothesis: Hypothesis,
    family: Family,
    half: Half,
    after: Tensor,
    controls: Sequence[tuple[Trigger, Tensor]],
    *,
    held_out: bool,
    searched: bool = False,
    surer: Tensor | None = None,
    rivals: Sequence[Rival] = (),
) -> Confirmation:
    """Count one hypothesis on some images, against matched controls on the same images.

    Args:
        stamped: The trigger.
        hypothesis: What it is taken to do.
        family: Where the images come from.
        half: The images.
        after: ``(N,)`` predictions under the trigger.
        controls: Each control with the predictions under it; no answer counts against the trigger.
        held_out: The screen has not seen these images.
        searched: A search made the trigger.
        surer: ``(N,)`` bool, see `Confirmation.surer`; None where it was not measured.
        rivals: Triggers searched for other classes: target, trigger and ``(N,)`` bool, which images
            it drives less far towards its own target.
    """
    mapping = torch.tensor(hypothesis.mapping)
    wanted = mapping[half.groups]
    eligible = wanted >= 0
    hit = follows(mapping, half.groups, after)
    counts = []
    for control, other in controls:
        # without an answer a control may have fired, so that it is counted as if it had
        control_hit = follows(mapping, half.groups, other) | (eligible & (other == UNDECIDED))
        counts.append(
            ControlCount(
                trigger=repr(control),
                hits=int(control_hit.sum()),
                gained=int((hit & ~control_hit).sum()),
                lost=int((control_hit & ~hit).sum()),
            )
        )
    sources, permuted = _following(half.groups, hit, hypothesis.mapping)
    area, change = footprint(stamped.trigger, half.images)
    return Confirmation(
        probe=stamped.probe,
        title=stamped.title,
        trigger=repr(stamped.trigger),
        family=family.name,
        scope=hypothesis.scope,
        target=hypothesis.target,
        source=hypothesis.source,
        mapping=hypothesis.mapping if hypothesis.scope == "all-to-all" else None,
        shift=hypothesis.shift,
        sources=sources,
        permuted=permuted,
        held_out=held_out,
        keeps_meaning=stamped.trigger.keeps_meaning,
        searched=searched,
        surer=None if surer is None else int((surer & eligible).sum()),
        eligible=int(eligible.sum()),
        hits=int(hit.sum()),
        clean_hits=int(follows(mapping, half.groups, half.before).sum()),
        controls=tuple(counts),
        rivals=tuple(
            RivalCount(trigger=repr(rival), target=k, weaker=int((weaker & eligible).sum()))
            for k, rival, weaker in rivals
        ),
        area=area,
        change=change,
    )


def follows(mapping: Tensor, groups: Tensor, after: Tensor) -> Tensor:
    """Which images ``(N,)`` go where a map ``(K,)`` of classes, -1 for none, sends their class."""
    wanted = mapping[groups]
    return (after == wanted) & (wanted >= 0)


def _following(groups: Tensor, hit: Tensor, mapping: Sequence[int]) -> tuple[int, int]:
    """Classes most of whose images are hits; and those with enough images that go round in circles."""
    members = torch.bincount(groups, minlength=len(mapping))
    follow = 2 * torch.bincount(groups[hit], minlength=len(mapping)) > members
    enough = (follow & (members >= verdict.PERMUTED_IMAGES)).nonzero().flatten().tolist()
    moves = {k: mapping[k] for k in enough}
    return int(follow.sum()), sum(_circle(k, moves) >= verdict.SHORTEST_CIRCLE for k in moves)


def _circle(start: int, moves: Mapping[int, int]) -> int:
    """Moves after which one is back at `start`; 0 where one never is."""
    at = start
    for length in range(1, len(moves) + 1):
        if at not in moves:
            return 0
        at = moves[at]
        if at == start:
            return length
    return 0


def margins_of(logits: Tensor, target: Tensor) -> Tensor:
    """``z_k - max_{j != k} z_j`` for each row; `logits` ``(N, K)``, `target` ``(N,)``."""
    own = logits.gather(1, target.unsqueeze(1))
    others = logits.scatter(1, target.unsqueeze(1), -torch.inf)
    return own.squeeze(1) - others.amax(1)


def driven(classifier: Classifier, half: Half, trigger: Trigger, mapping: Sequence[int]) -> Tensor:
    """How far a trigger drives each image towards its target: the margins ``(N,)``, on the CPU.

    Args:
        classifier: The suspect.
        half: The images.
        trigger: What to stamp.
        mapping: Class -> the target of its images; no matter what where it is -1.
    """
    logits = classifier.logits(trigger(as_float(half.images)))
    wanted = torch.tensor(mapping)[half.groups].clamp_min(0)
    return margins_of(logits, wanted.to(logits.device)).cpu()


def usual_margin(logits: Tensor) -> float | None:
    """Median margin of the predicted class over unstamped images, from their ``(N, K)``.

    None where scores cannot say more: half of the margins are as large as any (but for `ALIKE`), or
    infinite. Half precision after a softmax does that.
    """
    margins = margins_of(logits, logits.argmax(1))
    median = margins.median()
    if not median.isfinite() or (len(margins) >= 3 and median >= (1 - ALIKE) * margins.max()):
        return None
    return float(median)


def matched_controls(trigger: Trigger, count: int = CONTROLS) -> list[Trigger]:
    """The matched controls of a trigger, numbers 0 to `count` - 1."""
    return [trigger.control(seed) for seed in range(count)]


def screen(
    classifier: Classifier,
    family: Family,
    stamped: Sequence[Stamped],
    *,
    notify: Notify = silent,
    deadline: float = float("inf"),
) -> Tensor:
    """Predictions ``(T', N)`` of the screening images under as many triggers as time allows."""

    def report(done: int) -> None:
        current = stamped[min(done, len(stamped) - 1)].probe
        notify(f"{current} on {family.name} images", done, len(stamped))

    triggers = [entry.trigger for entry in stamped]
    return predictions(classifier, family.screen.images, triggers, notify=report, deadline=deadline)
