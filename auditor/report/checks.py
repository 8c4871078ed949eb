"""What no scan and no purification writes: a report would fail on it, or lie."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from auditor.inspecting.record import MOST_NUMBERS, Inspection
from auditor.report.pictures import read_image
from auditor.results.facts import ONE_NUMBER, Counts, SplitFacts
from auditor.results.purify import (
    CaseExhibit,
    Confusion,
    Contender,
    Embedding,
    MaskLayer,
    MethodFacts,
    Outcome,
    PurifyResult,
    Stress,
    destinations,
)
from auditor.results.scan import SCAN_SCHEMA, Confirmation, ControlCount, Inversion, ScanResult

MOST_IMAGES = 1_000_000
"""In one family; a result that claims more was not made by a scan."""
FEWEST_MOVED = 3
"""Hits of a class that goes round in circles: most of `verdict.PERMUTED_IMAGES`."""
MOST_LENDERS = 100
MOST_POINTS = 20_000
MOST_BINS = 200
MOST_METHODS = 64
MOST_TRAINED = 10**15
MOST_ROUNDS = 100
MOST_NESTED = 8
"""Lists in lists of a found trigger's fields; writing the result again needs a stack as deep."""


def contradictions(result: ScanResult | PurifyResult | Inspection) -> Iterator[str]:
    """What is wrong with the numbers of a result, each in a few words."""
    if isinstance(result, Inspection):
        return _of_inspection(result)
    return _of_scan(result) if isinstance(result, ScanResult) else _of_purification(result)


def _of_inspection(found: Inspection) -> Iterator[str]:
    content = found.content
    counts = (content.tensors, content.parameters, content.classes, content.side)
    numbers = [found.bytes, *content.dtypes.values(), *content.input_size, *counts]
    if any(number is not None and not 0 <= number <= MOST_NUMBERS for number in numbers):
        yield "an impossible number"
    if any(not 0 <= fit.score <= 1 for fit in content.fits):
        yield "weights that fit more than wholly"
    if not re.fullmatch(r"[0-9a-f]{64}", found.sha256):
        yield "a SHA-256 that is none"
    if found.dangerous and (found.scan.works or found.purify.works):
        yield "a dangerous file that can be opened"


def _of_scan(result: ScanResult) -> Iterator[str]:
    classes = result.model.classes
    if len(result.model.class_names) != classes:
        yield f"{len(result.model.class_names)} class names for {classes} classes"
    families = {facts.family for facts in result.images}
    for facts in result.images:
        sizes = {len(facts.screen_members), len(facts.confirm_members), len(facts.predicted)}
        if sizes != {classes}:
            yield "images are not counted for every class"
        if (
            not 0
            <= min(facts.screen, facts.confirm)
            <= max(facts.screen, facts.confirm)
            <= MOST_IMAGES
        ):
            yield "an impossible number of images"
    named = [k for response in result.responses for k in response.hits]
    named += [k for c in result.confirmations for k in (c.target, c.source) if k is not None]
    named += [
        p
        for e in result.exhibits
        for picture in e.pictures
        for p in (picture.before, picture.after)
    ]
    named += [e.target for e in result.exhibits if e.target is not None]
    named += result.margin.classes if result.margin else ()
    named += chain.from_iterable(search.classes for search in result.inversions)
    named += (*result.judgement.outlier_classes, *result.judgement.search_classes)
    strange = next((k for k in named if not 0 <= k < classes), None)
    if strange is not None:
        yield f"class {strange} of {classes}"
    if {response.family for response in result.responses} - families:
        yield "a response on images that are not described"
    for response in result.responses:
        if any(not 0 <= count <= response.images for count in response.hits.values()):
            yield "a response with more hits than images"
        if not 0 <= response.unanswered <= response.images:
            yield "a response with more images without an answer than images"
    searches = {search.search for search in result.inversions}
    for c in result.confirmations:
        yield from _of_confirmation(c, classes)
        if c.searched != (c.probe in searches):
            yield "a searched trigger that passes for a declared one, or the other way round"
    for search in result.inversions:
        yield from _of_search(search, families)
    yield from _of_transplants(result)
    if result.margin is not None and len(result.margin.margins) != len(result.margin.classes):
        yield "margins that do not fit their classes"
    for reason in result.judgement.reasons:
        if reason.confirmation is not None and not 0 <= reason.confirmation < len(
            result.confirmations
        ):
            yield "a reason that cites a confirmation which is not there"


def _of_transplants(result: ScanResult) -> Iterator[str]:
    examined = {c.target for c in result.confirmations if c.scope == "all-to-one"}
    seen = set()
    for lent in result.transplants:
        if lent.target not in examined or (lent.target, lent.kind) in seen:
            yield "a class that was examined for no trigger, or twice"
        seen.add((lent.target, lent.kind))
        if not (0 < lent.size <= 1 and 0 < lent.eligible <= MOST_IMAGES):
            yield "pieces or textures of an impossible size, or on an impossible number of images"
        if len(lent.moved) > MOST_LENDERS or not all(0 <= n <= lent.eligible for n in lent.moved):
            yield "pieces or textures that move more images than there are"


def _of_confirmation(c: Confirmation, classes: int) -> Iterator[str]:
    if any(
        not 0 <= hits <= c.eligible
        for hits in (c.hits, c.clean_hits, *(control.hits for control in c.controls))
    ):
        yield "a confirmation with more hits than images"
    elif not all(_adds_up(control, c) for control in c.controls):
        yield "a control whose hits do not add up with those of its trigger"
    if c.eligible > MOST_IMAGES:
        yield "an impossible number of images"
    yield from _of_map(c, classes)
    if c.surer is not None and not 0 <= c.surer <= c.eligible:
        yield "a confirmation with an impossible number of surer images"
    if c.searched and not c.controls:
        yield "a searched trigger that was compared with no control"
    if c.rivals and not (c.searched and c.held_out and c.scope == "all-to-one"):
        yield "a trigger that is held against searched ones without being one"
    if any(not 0 <= rival.target < classes or rival.target == c.target for rival in c.rivals):
        yield "a trigger that is held against one for no other class"
    if any(not 0 <= rival.weaker <= c.eligible for rival in c.rivals):
        yield "a rival that is weaker on more images than there are"


def _of_map(c: Confirmation, classes: int) -> Iterator[str]:
    if (c.mapping is not None) != (c.scope == "all-to-all"):
        yield "a map of classes where there is none, or none where there is one"
    elif c.mapping is not None and len(c.mapping) != classes:
        yield "a map of classes that does not cover them"
    elif not all(-1 <= k < classes for k in c.mapping or ()):
        yield "a map to a class that there is not"
    elif c.shift is not None and c.mapping != tuple(
        (k + c.shift) % classes for k in range(classes)
    ):
        yield "a shift that is not its map"
    if not 0 <= c.sources <= min(classes, c.hits):
        yield "an impossible number of source classes"
    targets = {k for k in c.mapping or () if k >= 0}
    if not 0 <= c.permuted <= min(c.sources, len(targets), c.hits // FEWEST_MOVED):
        yield "an impossible number of classes that go round in circles"


def _adds_up(control: ControlCount, c: Confirmation) -> bool:
    """True where some images can have been hit so: both, the trigger alone, the control alone."""
    both = c.hits - control.gained
    return (
        min(control.gained, control.lost, both) >= 0
        and control.hits - control.lost == both
        and both + control.gained + control.lost <= c.eligible
    )


def _of_search(search: Inversion, families: set[str]) -> Iterator[str]:
    if len(search.sizes) != len(search.classes):
        yield "sizes that do not fit their classes"
    if len(set(search.classes)) != len(search.classes):
        yield "a class that was searched twice"
    sizes = [size for size in search.sizes if size is not None]
    if not all(0 < size < math.inf for size in (*sizes, *(found.size for found in search.found))):
        yield "a size of a change that is none"
    if search.family not in families:
        yield "a search on images that are not described"
    if not (0 <= search.images <= MOST_IMAGES and search.steps >= 0):
        yield "an impossible number of images or steps of a search"
    for found in search.found:
        if found.target not in search.classes:
            yield "a found trigger for a class that was not searched"
        if _is_deep(found.fields, MOST_NESTED):
            yield "fields of a found trigger that are nested too deeply"


def _is_deep(value: object, most: int) -> bool:
    """True where more than `most` lists or objects lie in one another."""
    if not isinstance(value, dict | list | tuple):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_is_deep(entry, most - 1) for entry in inner)


def _of_purification(result: PurifyResult) -> Iterator[str]:
    classes = result.model.classes
    if len(result.model.class_names) != classes:
        yield f"{len(result.model.class_names)} class names for {classes} classes"
    yield from _of_nested_scans(result)
    yield from _of_split("fit", result.fit, classes)
    yield from _of_split("judge", result.judge, classes)
    strange = next((k for k in _named_classes(result) if not 0 <= k < classes), None)
    if strange is not None:
        yield f"class {strange} of {classes}"
    if not _within(result.accuracy, result.judge.images):
        yield "more rightly classified images than images"
    yield from _of_outcomes(result)
    if result.method is not None:
        yield from _of_method(result.method)
    if result.confusion is not None:  # the methods' own counts are held against it
        yield from _of_confusion(result.confusion, result)
    yield from _of_contenders(result)
    for layer in result.masks:
        yield from _of_masks(layer)
    yield from _of_changes(result)
    for exhibit in result.exhibits:
        yield from _of_exhibit(exhibit)
    if result.embedding is not None:
        yield from _of_embedding(result.embedding)
    if result.stress is not None:
        yield from _of_stress(result.stress)
    goals = result.goals
    if not all(map(_is_share, (goals.max_asr, goals.max_acc_drop, goals.max_class_drop))):
        yield "a goal that is no share"
    written = result.written
    if written is not None and not (
        min(written.bytes, written.tensors, written.compared, *(f.bytes for f in written.beside))
        >= 0
        and 0 <= written.largest_difference < math.inf
    ):
        yield "an impossible written file"


def _of_nested_scans(result: PurifyResult) -> Iterator[str]:
    scans = {"evidence": result.evidence, "before": result.before, "after": result.after}
    for name, scan in scans.items():
        if scan is None:
            continue
        if scan.schema != SCAN_SCHEMA:
            yield f'the scan "{name}" is of another version'
        if scan.model.classes != result.model.classes:
            yield f'the scan "{name}" is of a model with {scan.model.classes} classes'
        for problem in _of_scan(scan):
            yield f'in the scan "{name}", {problem}'


def _of_split(name: str, split: SplitFacts, classes: int) -> Iterator[str]:
    if not 0 <= split.images <= MOST_IMAGES:
        yield f"an impossible number of {name} images"
    if len(split.members) != classes:
        yield f"{name} images that are not counted for every class"
    elif min(split.members, default=0) < 0 or sum(split.members) != split.images:
        yield f"{name} images that do not add up"


def _named_classes(result: PurifyResult) -> Iterator[int]:
    for outcome in result.outcomes:
        yield from (k for k in (outcome.target, outcome.source) if k is not None)
    for exhibit in result.exhibits:
        if exhibit.target is not None:
            yield exhibit.target
        for case in exhibit.cases:
            yield case.label
            yield from (case.clean_before, case.stamped_before)
            yield from (case.clean_after, case.stamped_after)
    if result.embedding is not None:
        for point in result.embedding.points:
            yield from (point.label, point.predicted_before, point.predicted_after)
    if result.stress is not None:
        yield result.stress.target


def _of_outcomes(result: PurifyResult) -> Iterator[str]:
    classes = result.model.classes
    if result.model.output in ONE_NUMBER and classes != 2:
        yield "one number an image for other than two classes"
    for outcome in result.outcomes:
        if outcome.eligible > result.judge.images or not _within(outcome.hits, outcome.eligible):
            yield "an outcome with more hits than images"
        mapping = outcome.mapping
        if mapping is not None and (
            len(mapping) != classes or not all(-1 <= k < classes for k in mapping)
        ):
            yield "a map of classes that does not cover them"
        elif outcome.target is None and mapping is None:
            yield "an outcome without a target"
        elif outcome.eligible != sum(
            members
            for members, target in zip(
                result.judge.members, destinations(outcome, classes), strict=True
            )
            if target >= 0
        ):
            yield "an outcome that does not count the images of its classes"
        if not _counts_confused(outcome):
            yield "an outcome with more confused images than images"


def _counts_confused(outcome: Outcome) -> bool:
    """Whether its confused images are of those that there are."""
    left = outcome.hits.after - outcome.anyway
    others = outcome.eligible - outcome.unstamped
    return 0 <= outcome.anyway <= outcome.unstamped and 0 <= left <= others


def _of_method(method: MethodFacts) -> Iterator[str]:
    if len(method.rounds) > MOST_ROUNDS or any(entry.known < 0 for entry in method.rounds):
        yield "rounds of a purification that cannot have been"
    for stage in method.stages:
        if min(stage.steps, stage.images) < 0:
            yield "a stage with fewer than no steps"
        for check in stage.checks:
            if not (_is_share(check.asr) and _is_share(check.acc) and check.step >= 0):
                yield "a check of a stage that is no share"


def _of_contenders(result: PurifyResult) -> Iterator[str]:
    if len(result.contenders) + len(result.not_compared) > MOST_METHODS:
        yield "more methods than there are"
    for contender in result.contenders:
        wanted = [outcome.eligible for outcome in result.outcomes]
        if len(contender.hits) != len(wanted):
            yield "a method that was not measured on every trigger"
        elif any(not 0 <= hits <= most for hits, most in zip(contender.hits, wanted, strict=True)):
            yield "a method with more hits than images"
        elif contender.recognised is not None and not _counts_classes(contender, result):
            yield "a method whose rightly classified images a class cannot be"
        else:
            yield from _of_its_goals(contender, result)
        if not 0 <= contender.correct <= result.judge.images:
            yield "a method with more rightly classified images than images"
        tested = 0 if result.stress is None else result.stress.eligible
        if contender.retuned is not None and not 0 <= contender.retuned <= tested:
            yield "a stress test of a method with more hits than images"
        check = contender.choosing
        if not (_is_share(check.asr) and _is_share(check.acc)) or not (
            0 <= contender.trained <= MOST_TRAINED and 0 <= contender.seconds < math.inf
        ):
            yield "a method with numbers that cannot be"


def _counts_classes(contender: Contender, result: PurifyResult) -> bool:
    """Whether its rightly classified images a class are of the images that there are."""
    right, members = contender.recognised or (), result.judge.members
    return (
        len(right) == len(members)
        and all(0 <= count <= of for count, of in zip(right, members, strict=True))
        and sum(right) == contender.correct
    )


def _confused_by(contender: Contender, result: PurifyResult) -> Sequence[tuple[int, int]]:
    """What it confuses anyway, an outcome at a time; older records count none."""
    none = [(0, 0)] * len(result.outcomes)
    return contender.confused if len(contender.confused) == len(none) else none


def _of_its_goals(contender: Contender, result: PurifyResult) -> Iterator[str]:
    """Its counts must miss a goal where they are said to, and only there; the best one's scan may."""
    from auditor.verdict import judge_purification  # here, as it brings the statistics' libraries

    outcomes = [
        replace(outcome, hits=replace(outcome.hits, after=hits), unstamped=unstamped, anyway=anyway)
        for outcome, hits, (unstamped, anyway) in zip(
            result.outcomes, contender.hits, _confused_by(contender, result), strict=True
        )
    ]
    if not all(map(_counts_confused, outcomes)):
        yield "a method with more confused images than images"
    goals = judge_purification(
        accuracy=replace(result.accuracy, after=contender.correct),
        images=result.judge.images,
        outcomes=outcomes,
        after=None,
        max_asr=result.goals.max_asr,
        max_acc_drop=result.goals.max_acc_drop,
        members=result.judge.members,
        fewest_classes=result.goals.fewest_classes,
        recognised=None
        if result.confusion is None or contender.recognised is None
        else (result.confusion.recognised[0], contender.recognised),
        max_class_drop=result.goals.max_class_drop,
        caveats=result.caveats,
    )
    scanned = contender is result.contenders[0]
    if bool(goals.missed) != bool(contender.missed) and not (scanned and contender.missed):
        yield "a method that is said to meet goals and does not, or the other way round"


def _of_masks(layer: MaskLayer) -> Iterator[str]:
    if not 1 <= len(layer.histogram) <= MOST_BINS or min(layer.histogram) < 0:
        yield "a histogram of masks that counts nothing"
    elif sum(layer.histogram) != layer.channels:
        yield "a histogram of masks that does not count every channel"
    if (
        min(layer.near_zero, layer.near_one) < 0
        or layer.near_zero + layer.near_one > layer.channels
    ):
        yield "more masks near 0 and 1 than channels"
    if not _finite(layer.lower_bound, layer.smallest, layer.mean):
        yield "a mask that is no number"


def _of_changes(result: PurifyResult) -> Iterator[str]:
    channels = {layer.layer: layer.channels for layer in result.masks}
    for changed in result.channels:
        if not 0 <= changed.channel < channels.get(changed.layer, MOST_IMAGES):
            yield "a changed channel that its layer does not have"
        if not _finite(changed.mask):
            yield "a mask that is no number"
    if not _finite(*(tensor.change or 0 for tensor in result.tensors)):
        yield "a change that is no number"


def _of_exhibit(exhibit: CaseExhibit) -> Iterator[str]:
    pictures = [exhibit.difference_png]
    for case in exhibit.cases:
        pictures += [case.clean_png, case.stamped_png]
        sure = [case.clean_before_probability, case.stamped_before_probability]
        sure += [case.clean_after_probability, case.stamped_after_probability]
        if not all(map(_is_share, sure)):
            yield "a probability outside 0 to 1"
    if not all(map(read_image, pictures)):
        yield "a picture that is no PNG"


def _of_embedding(embedding: Embedding) -> Iterator[str]:
    if len(embedding.points) > MOST_POINTS:
        yield "more points in the map than it can have"
    if not _finite(embedding.perplexity):
        yield "a perplexity that is no number"
    if not all(_finite(*point.before, *point.after) for point in embedding.points):
        yield "a point without a place"


def _of_confusion(confusion: Confusion, result: PurifyResult) -> Iterator[str]:
    classes = result.model.classes
    pairs = ((confusion.before, result.accuracy.before), (confusion.after, result.accuracy.after))
    for rows, correct in pairs:
        if len(rows) != classes or any(len(row) != classes for row in rows):
            yield "a confusion matrix that does not cover the classes"
            continue
        if min(map(min, rows)) < 0 or sum(map(sum, rows)) > result.judge.images:
            yield "a confusion matrix that counts more than every image"
        elif sum(rows[k][k] for k in range(classes)) != correct:
            yield "a confusion matrix that disagrees with the accuracy"
        elif any(sum(row) > of for row, of in zip(rows, result.judge.members, strict=True)):
            yield "a confusion matrix that counts more images of a class than there are"
    for outcome in result.outcomes:
        sent = confusion.sent(destinations(outcome, classes))
        if outcome.unstamped > min(sent.before, sent.after):
            yield "a confusion matrix that disagrees with what is sent somewhere without a trigger"
    lost, gained = confusion.lost, confusion.gained
    if lost is None or gained is None:
        return
    stays = result.accuracy.before - lost
    if min(lost, gained, stays) < 0 or stays + gained != result.accuracy.after:
        yield "images lost and gained that disagree with the accuracy"
    elif result.accuracy.before + gained > result.judge.images:
        yield "more images gained than were wrong"


def _of_stress(stress: Stress) -> Iterator[str]:
    for row in stress.rows:
        if not (
            0 <= row.hits_before <= stress.eligible
            and 0 <= row.hits_after <= stress.eligible
            and 0 <= row.correct_after <= stress.total
        ):
            yield "a stress test with more hits than images"


def _within(counts: Counts, total: int) -> bool:
    every: Iterable[int] = (counts.before, counts.after, counts.baseline or 0)
    return all(0 <= count <= total for count in every)


def _is_share(value: float) -> bool:
    return 0 <= value <= 1


def _finite(*values: float) -> bool:
    return all(map(math.isfinite, values))
