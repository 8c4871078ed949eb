"""Is this audit itself sound? What limits it becomes a caveat, and a blocking one decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from auditor import verdict
from auditor.classifier import UNDECIDED, Classifier, as_float
from auditor.images.source import CleanSet
from auditor.measure import Family, Half, usual_margin
from auditor.results.facts import ONE_NUMBER, Caveat, ImageFacts, Output, Preprocessing, Verdict
from auditor.scanning import alone
from auditor.statistics import upper_bound
from auditor.text import clean_text, counted, listed

CHANGED_ITSELF = Caveat(
    id="memory",
    text="The network changed values of its own while it answered, so that it may answer otherwise after "
    "other questions, or after more of them, and no scan says what its users get. Export it to ONNX, which "
    "keeps nothing, and scan that.",
    blocking=True,
)
MOST_CLASSES = 12
"""Classes that are never predicted that are named."""
SHOWN = 3
"""Files that cannot be read, or classes that are not recognised, that are named."""
FEWEST_OF_CLASS = 5
"""Images of a class of which one should be recognised."""
FEW_IMAGES = 73
"""Below it, even 0 hits allow an ASR of 5 % (Wilson 95 %)."""


def check(
    classifier: Classifier,
    preprocessing: Preprocessing,
    half: Half,
    clean: Family | None,
    given: CleanSet | None,
) -> Iterator[Caveat]:
    """Everything that the reader should know before believing a number.

    Args:
        classifier: The suspect.
        preprocessing: How the input preparation was chosen.
        half: Some images to try things on.
        clean: The user's images, if any, and what the suspect says of them.
        given: The same, as they were read.
    """
    if preprocessing.source == "unresolved":
        yield Caveat(
            id="preprocessing",
            text=f"The input preparation is not settled: {preprocessing.reason}. {preprocessing.advice}.",
            blocking=True,
        )
    if classifier.output in ONE_NUMBER:
        yield _one_number(classifier.output)
    if clean is not None and given is not None:
        yield from _accuracy(clean.facts, preprocessing, len(clean.facts.predicted))
        yield from _unrecognised(clean, given.class_names)
        yield from _images(clean.facts)
        yield from _few_classes(clean.facts)
        yield from _copies(given)
        yield from (Caveat(id="clean-folder", text=remark) for remark in given.remarks)
    if clean is not None and usual_margin(classifier.logits(clean.screen.images)) is None:
        yield Caveat(
            id=verdict.SATURATED,
            text="Of most of your images the scores are as far apart as they can be (a softmax in half "
            "precision does that, and a steep sigmoid), so that no trigger can make the model surer, by "
            "which many backdoors are told. Export the network without its softmax or sigmoid, or in 32 "
            "bits, and scan that.",
        )
    tolerated = alone.tolerance(classifier, half)
    if math.isinf(tolerated):
        yield Caveat(
            id="random-output",
            text="The model answers differently when asked the same twice; every count is one draw. Where a "
            "dropout stayed active, export it in eval mode.",
        )
    images, before = as_float(half.images[: alone.TRIED]), half.before[: alone.TRIED]
    answers = alone.answers_alone(classifier, images, before, tolerated)
    chance = 0
    if math.isinf(tolerated):
        chance = int((classifier.predict(images) != before).sum())
    if alone.is_unlike(answers, chance):
        otherwise = sum(answer in ("other", "close") for answer in answers)
        yield Caveat(
            id="alone",
            text=f"{otherwise} of {len(images)} images are answered otherwise alone, or by the file "
            "as its users open it, with or without gradients, so that no count in batches says what they "
            "get. Scan with --batch-size 1, or export the network to ONNX as it is used, and scan that.",
            blocking=True,
        )
    if None in answers:
        yield Caveat(
            id="not-as-used",
            text="The file does not run as it is on this device, only with numbers of 32 bits, so that it "
            "was not compared with what its users get.",
        )


def _one_number(output: Output | None) -> Caveat:
    """What one number an image is taken for; the file does not say."""
    told, kind, threshold = (
        ("all", "probability", "1/2") if output == "probability" else ("not all", "logit", "0")
    )
    return Caveat(
        id="one-number",
        text=f"The model returns one number an image, and for the first images {told} of them were within 0 "
        f"to 1. It is taken for the {kind} of class 1 against class 0, so that the answer is class 1 above "
        f"{threshold}. With another threshold it is another classifier than the one that was tested.",
    )


def _few_classes(clean: ImageFacts) -> Iterator[Caveat]:
    """Too few classes for a trigger to be called a backdoor, of the model or of the images.

    One towards a class of which no image is there has a source class more.
    """
    if verdict.highest(clean) is Verdict.BACKDOOR:
        return
    classes, shown = len(clean.predicted), sum(count > 0 for count in clean.confirm_members)
    what = (
        "With two classes, a trigger that turns one into the other may be the very mark that tells them apart"
        if classes == 2
        else f"The images that triggers are confirmed on are of {shown} of {classes} classes only, and what "
        "works on so few may be a mark that tells them apart (give images of more classes)"
    )
    elsewhere = shown < classes and shown >= verdict.enough_sources(classes, verdict.FEWEST_SOURCES)
    which = "a trigger towards one of these" if elsewhere else "the verdict"
    yield Caveat(id="few-classes", text=f"{what}, so that {which} is SUSPICIOUS at most.")


def _unrecognised(clean: Family, names: Sequence[str]) -> Iterator[Caveat]:
    """Classes of which no image is recognised, while others are: their folders may be exchanged."""
    if not clean.facts.labelled:
        return
    halves = (clean.screen, clean.confirm) if clean.held_out else (clean.screen,)
    labels, said = (torch.cat([getattr(h, name) for h in halves]) for name in ("groups", "before"))
    if not (labels == said).any():
        return
    missed: list[str] = []
    for label in sorted(set(labels.tolist())):
        own = said[(labels == label) & (said != UNDECIDED)]
        if len(own) >= FEWEST_OF_CLASS and not (own == label).any():
            answer = int(own.mode().values)
            often = int((own == answer).sum())
            label_text, answer_text = (_class(number, names) for number in (label, answer))
            missed.append(
                f"{label_text} ({len(own)} images, {often} of them taken for {answer_text})"
            )
    if missed:
        yield Caveat(
            id="unrecognised",
            text=f"Not one image is recognised of {listed(missed, SHOWN, '; ')}. Are they in the right "
            "folders, or under the right numbers?",
        )


def _class(number: int, names: Sequence[str]) -> str:
    """A class as its folder is called, where that is known."""
    return f'class {number} "{clean_text(names[number])}"' if names else f"class {number}"


def _copies(given: CleanSet) -> Iterator[Caveat]:
    if given.copies:
        yield Caveat(
            id="copies",
            text=f"{given.copies} of {len(given) + given.copies} images are copies of others, and are left "
            "out: a picture counts once.",
        )
    if given.conflicts:
        yield Caveat(
            id="conflicts",
            text=f"{counted(given.conflicts, 'picture')} left out: there under several labels.",
        )


def _accuracy(clean: ImageFacts, preprocessing: Preprocessing, classes: int) -> Iterator[Caveat]:
    total = clean.screen + clean.confirm
    if clean.correct is not None and verdict.too_low(clean.correct, total, classes):
        tried = ", ".join(
            f"{c.spec.normalize}{' bgr' if c.spec.order == 'bgr' else ''} {c.correct}/{c.images}"
            for c in preprocessing.candidates
        )
        yield Caveat(
            id="accuracy",
            text=(
                f"Clean accuracy is {clean.correct / total:.1%} ({clean.correct} of {total} images, "
                f"{classes} classes): too low for a trained model. The input preparation or the order of the "
                f"classes is probably wrong, so an ASR would mean nothing. Tried: {tried}. Pass --normalize "
                "MEAN/STD, --input CxHxW, --channel-order bgr or --labels FILE."
            ),
            blocking=True,
        )
    never = [str(number) for number, count in enumerate(clean.predicted) if count == 0]
    if never and clean.correct is not None and total >= 5 * classes:
        yield Caveat(
            id="unpredicted",
            text=f"No clean image is predicted as class {listed(never, MOST_CLASSES)}.",
        )


def _images(clean: ImageFacts) -> Iterator[Caveat]:
    total = clean.screen + clean.confirm
    if not clean.labelled:
        yield Caveat(
            id="unlabelled",
            text=(
                "The images have no labels: those predicted as the target class without a trigger are "
                "left out instead of those that are of it, and accuracy cannot be measured."
            ),
        )
    if not clean.confirm:
        yield Caveat(
            id="not-held-out",
            text=(
                f"With {counted(total, 'image')} the same ones serve to screen and to confirm; all "
                "comparisons are corrected for, and all-to-all maps and source-specific triggers are "
                "not tested."
            ),
        )
    if total < FEW_IMAGES:
        least = clean.screen - max(clean.screen_members)
        yield Caveat(
            id="few-images",
            text=f"{counted(total, 'image')}: even a trigger that moves none of the {least} that may show it "
            f"to the screen may have an ASR of {upper_bound(0, least, verdict.DISPLAY_ALPHA):.0%}.",
        )
    untested = sum(
        members < verdict.CELL_IMAGES or screened < verdict.SCREEN_CELL_IMAGES
        for members, screened in zip(clean.confirm_members, clean.screen_members, strict=True)
    )
    if clean.confirm and untested:
        yield Caveat(
            id="source-specific",
            text=(
                f"Triggers that work for one source class only may pass unseen for {untested} of "
                f"{len(clean.confirm_members)} classes, which have fewer than "
                f"{verdict.SCREEN_CELL_IMAGES} images to screen or fewer than {verdict.CELL_IMAGES} others "
                "to confirm."
            ),
        )
    if clean.unreadable:
        yield Caveat(
            id="unreadable",
            text=f"Left out as unreadable, {counted(len(clean.unreadable), 'image')}: "
            f"{listed(clean.unreadable, SHOWN, '; ')}.",
        )
