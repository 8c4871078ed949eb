"""The images that triggers are stamped on: the user's, or made ones that the model takes for its classes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor import synthesis, verdict
from auditor.classifier import Classifier
from auditor.images.source import CleanSet
from auditor.measure import Family, Half
from auditor.memory import is_out_of_memory
from auditor.progress import Notify
from auditor.results.facts import Caveat, ImageFacts, Skipped
from auditor.search.searches import NEEDS_GRADIENTS, gradient_of

SCREEN_A_CLASS = 10
"""Screening images a class, enough to see a source-specific trigger…"""
SCREEN_IMAGES = (64, 128, 256)
"""…but no fewer than the first in all; and the second number where that would be more than the third,
since so many classes cannot all be tested as a source."""
MADE_IMAGES = 128
MADE_POOL = 512
"""Candidates a family; the model accepts some of them."""
MADE_PIXELS = 512 * 64 * 64
"""Of large images, fewer candidates are made."""
IMPRESSION_SECONDS = 120.0
"""Time that class impressions may take; they get fewer steps on a slow machine."""


@dataclass(frozen=True, kw_only=True)
class MadeFamilies:
    """Families of made images, with what is to be said about them."""

    families: Sequence[Family]
    skipped: Sequence[Skipped]
    caveats: Sequence[Caveat]


def clean_family(classifier: Classifier, clean: CleanSet, classes: int, *, triggers: int) -> Family:
    """The user's images, in halves where these are large enough to show something.

    Args:
        classifier: The suspect.
        clean: The images at its size.
        classes: K.
        triggers: How many will be stamped, for the correction.
    """
    before = classifier.answers(clean.images)
    groups = before if clean.labels is None else clean.labels
    total = len(clean)
    fewest, many_classes, most = SCREEN_IMAGES
    wanted = max(fewest, SCREEN_A_CLASS * classes)
    wanted = wanted if wanted <= most else many_classes

    def parted(split: int) -> Family:
        return _family(
            classifier, "clean", clean.images, before, groups, classes, split=split, clean=clean
        )

    family = parted(min(wanted, total // 2))
    if verdict.smallest_detectable(family.facts, 2 * classes * triggers)[1]:
        return family
    return parted(0)  # the halves are too small to show anything


def raw_images(shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
    """Made images that ask nothing of the model, a pool of each kind, as candidates.

    Args:
        shape: ``(C, H, W)`` of the model's input.
        seed: Of every draw.

    Returns:
        Name -> ``(N, C, H, W)`` uint8 on the CPU.
    """
    _, height, width = shape
    pool = (max(MADE_IMAGES, min(MADE_POOL, MADE_PIXELS // (height * width))), *shape)
    generator = torch.Generator().manual_seed(seed)
    return {
        "leaves": synthesis.dead_leaves(pool, generator),
        "noise": synthesis.colour_noise(pool, generator),
    }


def made_families(
    classifier: Classifier,
    raw: Mapping[str, Tensor],
    classes: int,
    *,
    seed: int,
    deadline: float,
    notify: Notify,
) -> MadeFamilies:
    """Made images that the model is sure of; families without enough of them are skipped.

    Args:
        classifier: The suspect.
        raw: What `raw_images` returns; class impressions and mixes of them are added.
        classes: K.
        seed: Of every draw.
        deadline: `time.monotonic` value.
        notify: Progress.
    """
    skipped: list[Skipped] = []
    caveats = [
        Caveat(
            id="no-images",
            text=(
                "No clean images were given, so triggers were stamped on made ones. That is weaker: "
                "accuracy cannot be measured, a finding needs two kinds of made images, and finding "
                "nothing is inconclusive. Give images with --clean DIR (100 or more)."
            ),
        )
    ]
    generator = torch.Generator().manual_seed(seed + 1)
    pools = dict(raw)
    impressions, why = _impressions(
        classifier, raw["noise"], classes, generator, deadline=deadline, notify=notify
    )
    if impressions is None:
        skipped.append(Skipped(what="class impressions and mixes", reason=why))
    else:
        pools |= {"impressions": impressions, "mixes": synthesis.mixes(impressions, generator)}
    families: list[Family] = []
    for name, images in pools.items():
        sure = images if impressions is None else impressions
        typical = synthesis.spread(classifier, sure)
        kept, why = synthesis.accepted(
            classifier, images, classes, generator, typical_spread=typical
        )
        if not len(kept):
            skipped.append(Skipped(what=f"{name} (made images)", reason=why))
            continue
        kept = kept[:MADE_IMAGES]
        before = classifier.predict(kept)
        families.append(_family(classifier, name, kept, before, before, classes, split=0))
    if not families:
        caveats.append(
            Caveat(
                id="no-made-images",
                text=(
                    "The model takes no made images with confidence for enough classes, so no "
                    "trigger could be tried. Give images with --clean DIR."
                ),
            )
        )
    return MadeFamilies(families=families, skipped=skipped, caveats=caveats)


def _impressions(
    classifier: Classifier,
    sample: Tensor,
    classes: int,
    generator: torch.Generator,
    *,
    deadline: float,
    notify: Notify,
) -> tuple[Tensor | None, str]:
    """Class impressions, or why there are none."""
    if gradient_of(classifier, sample) is None:
        return None, NEEDS_GRADIENTS
    try:
        impressions = synthesis.class_impressions(
            classifier,
            classes,
            generator,
            notify=notify,
            deadline=min(deadline, time.monotonic() + IMPRESSION_SECONDS),
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None, "out of memory"
    return impressions, "too slow on this device"


def _family(
    classifier: Classifier,
    name: str,
    images: Tensor,
    before: Tensor,
    groups: Tensor,
    classes: int,
    *,
    split: int,
    clean: CleanSet | None = None,
) -> Family:
    """Screen on the first `split` images and confirm on the rest; 0 uses all for both."""
    halves = [
        Half(images=images[part].to(classifier.device), groups=groups[part], before=before[part])
        for part in (slice(0, split or None), slice(split, None))
    ]
    members = [torch.bincount(half.groups, minlength=classes).tolist() for half in halves]
    labelled = clean is not None and clean.labels is not None
    digest = clean or CleanSet(images=images, labels=None)
    facts = ImageFacts(
        family=name,
        labelled=labelled,
        screen=len(halves[0]),
        confirm=len(halves[1]) if split else 0,
        screen_members=tuple(members[0]),
        confirm_members=tuple(members[1] if split else members[0]),
        predicted=tuple(torch.bincount(before, minlength=classes).tolist()),
        correct=int((before == groups).sum()) if labelled else None,
        digest=digest.digest(),
        files=clean.found if clean else 0,
        unreadable=clean.unreadable if clean else (),
    )
    return Family(facts=facts, screen=halves[0], confirm=halves[1], held_out=bool(split))


def held_out(family: Family) -> Family:
    """The family with images that a search does not see; halves, where the battery saw all."""
    if family.held_out:
        return family
    half, total = family.screen, len(family.screen)
    seen, other = (
        Half(images=half.images[part], groups=half.groups[part], before=half.before[part])
        for part in (slice(0, total, 2), slice(1, total, 2))
    )
    return replace(family, screen=seen, confirm=other, held_out=True)
