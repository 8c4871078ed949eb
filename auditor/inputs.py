"""How the input must be prepared: given, read from the file, or found by evaluating candidates.

A wrong normalisation or size flips verdicts silently, so this is settled before anything is
claimed; what was chosen, how sure, and the runners-up are part of the result.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from auditor.architectures import TORCHVISION_SIDE
from auditor.batchnorm import watched
from auditor.classifier import (
    REFUSALS,
    UNDECIDED,
    Classifier,
    decided,
    reason,
)
from auditor.errors import UnsuitableModel, UsageError
from auditor.images.source import CleanSet, ImageSource
from auditor.models.base import ModelHandle
from auditor.registry import nearest
from auditor.results.facts import Candidate, InputSpec, Output, Preprocessing
from auditor.scores import as_logits, output_of, scores_of
from auditor.text import clean_text, listed

Three = tuple[float, float, float]

NORMALIZATIONS: dict[str, tuple[Three, Three]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10-per-image-std": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)),
    "0-255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "caffe": ((0.408, 0.458, 0.485), (1 / 255, 1 / 255, 1 / 255)),
}
"""Name -> mean and standard deviation of pixels in [0, 1]. "half" is the range [-1, 1]; "caffe"
is 0-255 minus the ImageNet mean, in BGR."""

MINMAX = "minmax"
"""Each image stretched to [0, 1] by its own extremes (TrojAI rounds 1 to 3)."""

SIZES = (32, 28, 64, 96, 128, 160, 224, 256, 299, 384)
MAX_SIDE = 512
"""Larger images are photographs, and no network's input."""
EVALUATED_IMAGES = 128
CANDIDATE_SECONDS = 20.0
"""Time that trying all candidates may take; slow models are tried on fewer images."""
MIN_EVALUATED = 32

SIZE_IMAGES = 64
SIZE_NORMALIZATIONS = ("none", "imagenet", "half")
"""Enough to tell sizes apart; the normalisation itself is settled afterwards."""
GOOD_ACCURACY = 0.8
"""With this accuracy at the size of the images themselves, no other size is tried."""
FAIR_ACCURACY, SIZE_SECONDS = 0.4, 60.0
"""With such an accuracy there, other sizes are tried in that time only: a network of 32 pixels takes
a hundred times as long on 384."""
MOST_LEFT = 4
SIZE_ERRORS = 2.0
"""Another size must be right more often by so many standard errors of the difference: many are tried,
and a network that averages over places is right about as often on images that are a little smaller."""

EQUAL_ACCURACY = 0.02
"""Candidates within this accuracy of the best are told apart by BatchNorm distance instead."""
CLEAR_RATIO = 1.2
"""Runner-up's BatchNorm distance over the chosen one's, above which the choice is clear."""
SAME_PREDICTIONS = 0.9
"""Agreement of predictions above which it hardly matters which of two candidates is right."""


@dataclass(frozen=True, kw_only=True)
class GivenInput:
    """What the user said on the command line; None where nothing was said."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    normalize: str | None = None
    order: Literal["rgb", "bgr"] | None = None


def parse_input(text: str | None) -> tuple[int, int, int] | None:
    """Understand `--input 3x32x32`.

    Raises:
        UsageError: Not three numbers, or not 1 or 3 channels.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([13])x(\d{1,4})x(\d{1,4})", text.lower())
    if match is None or min(int(match[2]), int(match[3])) < 4:
        raise UsageError(
            f"--input {clean_text(text)}: expected channels x height x width, such as 3x32x32 "
            "(1 or 3 channels)."
        )
    return int(match[1]), int(match[2]), int(match[3])


def parse_normalize(
    text: str | None, channels: int
) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    """Understand `--normalize`: a name, or MEAN/STD such as 0.5,0.5,0.5/0.2,0.2,0.2.

    Raises:
        UsageError: Unknown name, or numbers that do not fit the channels.
    """
    if text is None or text == "auto":
        return None
    if text == MINMAX:
        return MINMAX, (0.0,) * channels, (1.0,) * channels
    if text in NORMALIZATIONS:
        mean, std = NORMALIZATIONS[text]
        return text, _for_channels(mean, channels), _for_channels(std, channels)
    parts = text.split("/")
    try:
        mean_, std_ = (tuple(float(value) for value in part.split(",")) for part in parts)
    except ValueError:
        raise UsageError(
            f"--normalize {clean_text(text)}: no such normalisation"
            f"{nearest(text, [*NORMALIZATIONS, MINMAX])} "
            f"Known: {', '.join([*NORMALIZATIONS, MINMAX])}, or MEAN/STD as numbers such as "
            "0.5,0.5,0.5/0.2,0.2,0.2 (of pixels in [0, 1])."
        ) from None
    mean_, std_ = (v * channels if len(v) == 1 else v for v in (mean_, std_))
    if (
        len(mean_) != channels
        or len(std_) != channels
        or not all(math.isfinite(value) and abs(value) < 1e6 for value in (*mean_, *std_))
        or not all(value > 1e-6 for value in std_)
    ):
        raise UsageError(
            f"--normalize {clean_text(text)}: {channels} means and {channels} positive deviations "
            "are needed."
        )
    return "custom", mean_, std_


def _for_channels(values: Three, channels: int) -> tuple[float, ...]:
    return values if channels == 3 else (sum(values) / 3,)


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The outcome: how to prepare the input, and what it rests on."""

    preprocessing: Preprocessing
    output: Output
    classes: int
    batch_size: int
    """The fastest one, measured on the way."""


def _of_channels(model: ModelHandle, channels: int) -> UnsuitableModel:
    return UnsuitableModel(
        f"{clean_text(model.file.path.name)} takes {channels} channels; auditor tests networks "
        "for grey or colour images (1 or 3)."
    )


def resolve_size(
    model: ModelHandle, source: ImageSource | None, given: GivenInput, seed: int
) -> tuple[int, int, int, str]:
    """Channels, height, width, and why; an empty reason means that it could not be resolved.

    Raises:
        UnsuitableModel: The network runs on no plausible input, or is no classifier.
    """
    fixed = model.input_size
    if given.channels and given.height and given.width:
        size = (given.channels, given.height, given.width)
        if error := _refusal(model, size):
            shown = "x".join(map(str, size))
            raise UnsuitableModel(
                f"--input {shown}: {clean_text(model.file.path.name)} does not run on it ({error})."
            )
        return *size, "given"
    native = source.sizes(source.draw(16, seed)) if source else set()
    (stored,) = native if len(native) == 1 else (None,)
    if stored and max(stored) > MAX_SIDE:
        stored = None  # photographs as they come, not images at the size of a network
    natural = stored if stored and stored[0] == stored[1] else None  # oblong ones may be either
    heights = [(fixed[1], fixed[2])] if fixed[1] and fixed[2] else []
    if not heights:
        sizes = [*([stored] if stored else []), *((side, side) for side in SIZES)]
        heights = list(dict.fromkeys(sizes))
    channels = [fixed[0]] if fixed[0] in (1, 3) else [3, 1]
    if fixed[0] not in (None, 1, 3):
        raise _of_channels(model, fixed[0])
    runs, errors = [], []
    for channel in channels:
        for height, width in heights:
            error = _refusal(model, (channel, height, width))
            errors.append(error)
            if not error:
                runs.append((channel, height, width))
        if runs:
            break
    if not runs:
        told = next((error for error in errors if "auditor" in error), None)
        if told is not None:  # it runs, and is no classifier
            raise UnsuitableModel(told)
        if all("missing" in error and "argument" in error for error in errors):
            raise UnsuitableModel(
                f"{clean_text(model.file.path.name)} takes more than a batch of images ({errors[-1]}); "
                "auditor tests networks with one input."
            )
        if any(not _refusal(model, (4, height, width)) for height, width in heights):
            raise _of_channels(model, 4)
        shown = ", ".join(f"{h}x{w}" for h, w in heights[:12])
        raise UnsuitableModel(
            f"{clean_text(model.file.path.name)} runs on none of the usual inputs ({shown}): "
            f"{errors[-1]}. Pass --input CxHxW."
        )
    if len(runs) == 1:
        why = "fixed by the file" if fixed[1] else "the only usual size that the network accepts"
        return *runs[0], why
    if source is not None and source.labels is not None:
        return _size_by_accuracy(model, source, runs, natural, given, seed)
    if natural and (runs[0][0], *natural) in runs:
        return *(runs[0][0], *natural), "the size of all images (the network accepts others too)"
    side = model.default_side
    if side and (runs[0][0], side, side) in runs:
        return runs[0][0], side, side, "what torchvision's networks are made for"
    return *runs[0], ""


def _size_by_accuracy(
    model: ModelHandle,
    source: ImageSource,
    runs: list[tuple[int, int, int]],
    natural: tuple[int, int] | None,
    given: GivenInput,
    seed: int,
) -> tuple[int, int, int, str]:
    side = model.default_side or TORCHVISION_SIDE
    names = SIZE_NORMALIZATIONS if given.normalize is None else (given.normalize,)
    preferred = (
        runs[0][0], *(natural or (side, side))
    )  # fmt: skip
    indices = source.draw(SIZE_IMAGES, seed)
    scores: dict[tuple[int, int, int], float] = {}
    spent, pixels, fewest = 0.0, 0, len(indices)
    left: list[str] = []
    for size in sorted(runs, key=lambda run: run != preferred):
        expected = spent / max(pixels, 1) * size[1] * size[2]
        if scores.get(preferred, 0) >= FAIR_ACCURACY and spent + expected > SIZE_SECONDS:
            left.append(f"{size[1]}x{size[2]}")
            continue
        begin = time.monotonic()
        clean = source.load(indices, blank_spec(size))
        specs = [_tried_spec(size, name, given) for name in names]
        right = max(recognised(model, spec, clean) for spec in specs)
        scores[size] = right / len(clean)
        fewest = min(fewest, len(clean))
        spent, pixels = spent + time.monotonic() - begin, pixels + size[1] * size[2]
        if size == preferred and scores[size] >= GOOD_ACCURACY:
            break
    best = max(scores, key=lambda size: scores[size])
    if preferred in scores and not _is_better(scores[best], scores[preferred], fewest):
        best = preferred
    others = sorted((s for s in scores if s != best), key=lambda s: -scores[s])
    shown = f"; next {others[0][1]}x{others[0][2]}: {scores[others[0]]:.0%}" if others else ""
    kind = "the size of all images" if natural == best[1:] else "the best size tried"
    late = f"; no time to try {listed(left, MOST_LEFT)}" if left else ""
    return *best, f"{kind}, clean accuracy {scores[best]:.0%}{shown}{late}"


def _is_better(accuracy: float, preferred: float, images: int) -> bool:
    """Whether that many images tell an accuracy from the one at the size that is likelier anyway."""
    variance = (accuracy * (1 - accuracy) + preferred * (1 - preferred)) / images
    return accuracy - preferred > max(EQUAL_ACCURACY, SIZE_ERRORS * math.sqrt(variance))


def _refusal(model: ModelHandle, size: tuple[int, int, int]) -> str:
    """Why the network gives no class scores for inputs of this size; empty where it does."""
    try:
        with torch.inference_mode():
            raw = model.call(torch.rand(model.batch or 2, *size, device=model.device))
            scores_of(raw, model.file.path.name)
    except UnsuitableModel as error:
        return clean_text(str(error), limit=400)
    except REFUSALS as error:
        return reason(error)
    return ""


def spec_of(
    size: tuple[int, int, int], text: str | None, order: Literal["rgb", "bgr"] | None = None
) -> InputSpec:
    """Images at `size`, prepared as `--normalize` says.

    Args:
        size: Channels, height, width.
        text: As `parse_normalize` takes it; where it says nothing, images are not normalised.
        order: None is the normalisation's own.

    Raises:
        UsageError: Unknown name, or numbers that do not fit the channels.
    """
    channels, height, width = size
    nothing = "none", (0.0,) * channels, (1.0,) * channels
    name, mean, std = parse_normalize(text, channels) or nothing
    return InputSpec(
        channels=channels,
        height=height,
        width=width,
        normalize=name,
        mean=mean,
        std=std,
        order=order or ("bgr" if name == "caffe" else "rgb"),
        per_image=name == MINMAX,
    )


def blank_spec(size: tuple[int, int, int]) -> InputSpec:
    """Images at `size`, not normalised: how the clean set is read."""
    return spec_of(size, "none")


def _tried_spec(size: tuple[int, int, int], name: str, given: GivenInput) -> InputSpec:
    """One of several that are tried; what caffe is, it is in BGR only."""
    return spec_of(size, name, None if name == "caffe" else given.order)


def resolve(
    model: ModelHandle,
    size: tuple[int, int, int],
    size_reason: str,
    clean: CleanSet | None,
    stand_ins: Tensor | None,
    given: GivenInput,
) -> Resolution:
    """Choose normalisation and channel order.

    Args:
        model: The suspect.
        size: Channels, height, width, as `resolve_size` found them.
        size_reason: Why that size; empty where it is a guess.
        clean: The user's images at that size, or None.
        stand_ins: Made images ``(N, C, H, W)`` uint8, for where there is no clean set.
        given: What the user said.

    Raises:
        UnsuitableModel: The scores of some of the images name no class.
    """
    if clean is None and stand_ins is None:
        raise ValueError("neither clean images nor stand-ins were given")
    evaluated = clean or CleanSet(images=stand_ins, labels=None)  # type: ignore[arg-type]
    evaluated, batch_size = _subset(model, evaluated, size)
    ranked, output, classes = _ranked(model, size, given, evaluated)
    source: Literal["given", "measured", "unresolved"] = "given"
    why, advice = "normalisation given on the command line", ""
    if given.normalize in (None, "auto"):
        source, why, advice = _decide(ranked, evaluated.labels is not None, clean is not None)
    elif len(ranked) > 1:
        why = f"{why}; {_decide(ranked, labelled=True, real=True)[1]}"
    if not size_reason:
        source = "unresolved"
        why = f"the network accepts several input sizes; {why}"
        advice = f"Pass the size it was trained on: --input {size[0]}x224x224"
    else:
        why = f"{size[1]}×{size[2]}: {size_reason}; {why}"
    best = Classifier(model, ranked[0][0].spec).answered(ranked[0][1])
    candidates = tuple(
        replace(candidate, agreement=float((predictions == best).float().mean()))
        for candidate, predictions in ranked[:6]
    )
    preprocessing = Preprocessing(
        spec=candidates[0].spec, source=source, reason=why, advice=advice, candidates=candidates
    )
    return Resolution(
        preprocessing=preprocessing,
        output=output,
        classes=classes,
        batch_size=batch_size,
    )


Ranked = list[tuple[Candidate, Tensor]]


def _ranked(
    model: ModelHandle, size: tuple[int, int, int], given: GivenInput, images: CleanSet
) -> tuple[Ranked, Output, int]:
    """All candidates, best first, with their predictions; in both orders where labels can tell.

    Beside them what the network returns, and how many classes these are.
    """
    labelled = images.labels is not None
    if given.normalize not in (None, "auto"):
        specs = [spec_of(size, given.normalize, given.order)]
    else:
        bgr = size[0] == 3 and given.order != "rgb"
        names = [name for name in NORMALIZATIONS if bgr or name != "caffe"] + [MINMAX]
        specs = [_tried_spec(size, name, given) for name in names]
    if labelled and given.order is None and size[0] == 3:
        specs += [replace(spec, order="bgr") for spec in specs if spec.order == "rgb"]
    answers = [_answers(model, spec, images) for spec in specs]
    outputs = dict(zip(specs, _outputs([scores for scores, _ in answers]), strict=True))
    ranked = _sorted(
        [
            _evaluated(spec, images, *answer, outputs[spec])
            for spec, answer in zip(specs, answers, strict=True)
        ],
        labelled,
    )
    if images.labels is not None:
        ranked = _usual_order_first(ranked, images.labels)
    return ranked, outputs[ranked[0][0].spec], max(2, answers[0][0].shape[1])


def _outputs(answers: Sequence[Tensor]) -> list[Output]:
    """What a network returns, for each way to prepare its input.

    Several scores are what they are whatever went in. One number is told by its own values: a sigmoid may
    leave 0 to 1, or be no number, where the input is none that the network was made for.
    """
    if answers[0].shape[1] == 1:
        return [output_of([scores]) for scores in answers]
    return [output_of(answers)] * len(answers)


def _sorted(found: Ranked, labelled: bool) -> Ranked:
    """Best first: by accuracy, near ties by BatchNorm distance; by that distance without labels.

    Where neither tells candidates apart, the order of `NORMALIZATIONS`, simple ones first, stays.
    """

    def distance(candidate: Candidate) -> float:
        known = candidate.batchnorm_distance
        return float("inf") if known is None else known

    if not labelled:
        return sorted(found, key=lambda entry: distance(entry[0]))
    top = max(candidate.correct or 0 for candidate, _ in found)
    tied = top - EQUAL_ACCURACY * found[0][0].images
    nearest_distance = min(distance(c) for c, _ in found if (c.correct or 0) >= tied)

    def rank(entry: tuple[Candidate, Tensor]) -> tuple[int, int]:
        candidate = entry[0]
        correct = candidate.correct or 0
        if correct < tied:
            return (2, -correct)
        return (0, 0) if distance(candidate) <= nearest_distance * CLEAR_RATIO else (1, -correct)

    return sorted(found, key=rank)


def _usual_order_first(ranked: Ranked, labels: Tensor) -> Ranked:
    """The best candidate in RGB first, unless one in BGR is right more often beyond chance.

    By the images on which one is right and the other is not: their number differs by more than
    `SIZE_ERRORS` standard errors (McNemar, Psychometrika 12 (1947) 153).
    """
    (best, answers), *_ = ranked
    place = next((p for p, (c, _) in enumerate(ranked) if c.spec.order == "rgb"), None)
    if best.spec.order == "rgb" or place is None:
        return ranked
    right, usual = (said == labels for said in (answers, ranked[place][1]))
    gained, lost = int((right & ~usual).sum()), int((usual & ~right).sum())
    if gained - lost > SIZE_ERRORS * math.sqrt(gained + lost):
        return ranked
    return [ranked[place], *ranked[:place], *ranked[place + 1 :]]


def _decide(
    ranked: Ranked, labelled: bool, real: bool
) -> tuple[Literal["measured", "unresolved"], str, str]:
    """Is the first candidate clearly right, or does it not matter? Source, reason, advice."""
    (best, predictions), *others = ranked
    rival: Candidate | None
    name = best.spec.normalize + (" (BGR)" if best.spec.order == "bgr" else "")
    if labelled:
        rival = others[0][0]
        rival_name = rival.spec.normalize + (" (BGR)" if rival.spec.order == "bgr" else "")
        top = max(candidate.correct or 0 for candidate, _ in ranked)
        first = next(candidate for candidate, _ in ranked if candidate.correct == top)
        distances = best.batchnorm_distance, first.batchnorm_distance
        told = None not in distances and distances[0] < distances[1]  # type: ignore[operator]
        how = "settled by BatchNorm statistics" if told else "not told apart"
        tied = "" if best.correct == top else f" (ties up to {top} {how})"
        return (
            "measured",
            f"normalize={name}: clean accuracy {best.correct}/{best.images}{tied}; "
            f"next {rival_name} with {rival.correct}",
            "",
        )
    advice = (
        "Pass how the model was trained: --normalize imagenet (or MEAN/STD), or give labelled "
        "images (--clean DIR with class folders)"
    )
    where = "the images" if real else "made images"
    if best.batchnorm_distance is not None:
        rivals = [
            (c, p) for c, p in others if float((p == predictions).float().mean()) < SAME_PREDICTIONS
        ]
        rival = rivals[0][0] if rivals else None
        ratio = (
            float("inf")
            if rival is None
            else (rival.batchnorm_distance or 0) / max(best.batchnorm_distance, 1e-9)
        )
        distance = f"{best.batchnorm_distance:.3f}"
        text = f"normalize={name} fits the BatchNorm statistics best on {where} ({distance}"
        if rival is None:
            return "measured", f"{text}; the others predict the same); order RGB assumed", ""
        text += f"; next {rival.spec.normalize} {rival.batchnorm_distance:.3f}); order RGB assumed"
        return ("measured", text, "") if ratio >= CLEAR_RATIO else ("unresolved", text, advice)
    usual = [
        (c, p) for c, p in ranked if c.spec.normalize in ("none", "half", "imagenet", "cifar10")
    ]
    agreement = min(float((a == b).float().mean()) for _, a in usual for _, b in usual)
    if agreement >= SAME_PREDICTIONS:
        return "measured", f"the usual normalisations predict the same on {where}", ""
    return (
        "unresolved",
        f"without labels and BatchNorm statistics nothing tells the normalisations apart, and they "
        f"agree on only {agreement:.0%} of {where}",
        advice,
    )


def recognised(model: ModelHandle, spec: InputSpec, images: CleanSet) -> int:
    """How many images one candidate gets right."""
    scores, distance = _answers(model, spec, images)
    return _evaluated(spec, images, scores, distance, output_of([scores]))[0].correct or 0


def _answers(model: ModelHandle, spec: InputSpec, images: CleanSet) -> tuple[Tensor, float | None]:
    """What the network returns for images that are prepared so, and their BatchNorm distance."""
    classifier = Classifier(model, spec, output=None)
    distances: list[Tensor] = []
    with watched(model.module, lambda *seen: distances.append(_divergence(*seen))):
        scores = classifier.logits(images.images)
    known = torch.stack(distances) if distances else torch.empty(0)
    known = known[known.isfinite()]  # a batch of one image may have no variance
    return scores, float(known.mean()) if len(known) else None


def _evaluated(
    spec: InputSpec, images: CleanSet, scores: Tensor, distance: float | None, output: Output
) -> tuple[Candidate, Tensor]:
    """One candidate for the record, by such answers, and its predictions."""
    logits = as_logits(scores, output)
    predictions = decided(logits).cpu()
    finite = bool((predictions != UNDECIDED).all())
    correct = None
    if images.labels is not None:
        correct = int((predictions == images.labels).sum()) if finite else 0
    candidate = Candidate(
        spec=spec,
        images=len(images),
        correct=correct,
        batchnorm_distance=distance,
        confidence=float(logits.softmax(1).amax(1).mean()) if finite else 0.0,
    )
    return candidate, predictions


def _divergence(
    layer: nn.BatchNorm2d, mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor
) -> Tensor:
    """Kullback-Leibler divergence of two normal distributions, batch against running statistics.

    In nats, mean over channels.
    """
    variance, running = variance + layer.eps, running_var + layer.eps
    kl = 0.5 * (
        variance / running + (mean - running_mean) ** 2 / running - 1 + (running / variance).log()
    )
    return kl.mean()


def _subset(
    model: ModelHandle, images: CleanSet, size: tuple[int, int, int]
) -> tuple[CleanSet, int]:
    """As many images as all candidates can be tried on in time, and the fastest batch size."""
    classifier = Classifier(model, blank_spec(size), output=None)
    speed = classifier.tune_batch_size()
    count = int(speed * CANDIDATE_SECONDS / (2 * len(NORMALIZATIONS) + 1))
    count = max(MIN_EVALUATED, min(EVALUATED_IMAGES, count))
    labels = None if images.labels is None else images.labels[:count]
    return CleanSet(images=images.images[:count], labels=labels), classifier.batch_size
