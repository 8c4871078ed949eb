"""Pictures for the report: what a trigger does to some of the images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from auditor.classifier import UNDECIDED, Classifier, as_float, decided
from auditor.measure import Half, Stamped
from auditor.purifiers.base import Known
from auditor.results.facts import Picture
from auditor.results.purify import Case, CaseExhibit
from auditor.results.scan import Exhibit

PICTURES = 6
"""Images that an exhibit shows."""
LOOKED_AT = 256
"""Images that they are chosen from."""


@torch.inference_mode()
def exhibit(
    classifier: Classifier,
    stamped: Stamped,
    half: Half,
    family: str,
    target: int | None,
    source: int | None = None,
) -> Exhibit:
    """A trigger on some images that it redirects, of different classes where possible.

    Args:
        classifier: The suspect.
        stamped: The trigger.
        half: The images.
        family: What they are.
        target: The class that it redirects to; None for any.
        source: The class that it redirects; None for all.
    """
    trigger = stamped.trigger
    groups = half.groups[:LOOKED_AT]
    before = as_float(half.images[:LOOKED_AT])
    probabilities = classifier.logits(before).softmax(1).cpu()
    changed = trigger(before)
    changed_probabilities = classifier.logits(changed).softmax(1).cpu()
    after = decided(changed_probabilities)
    moved = (after != decided(probabilities)) & (after != UNDECIDED)
    if target is not None:
        moved &= (after == target) & (groups != target)
    if source is not None:
        moved &= groups == source
    pictures = tuple(
        Picture(
            before_png=png_of(before[index]),
            after_png=png_of(changed[index]),
            before=int(probabilities[index].argmax()),
            before_probability=float(probabilities[index].max()),
            after=int(after[index]),
            after_probability=float(changed_probabilities[index].max()),
        )
        for index in _of_many_classes(moved, groups)[:PICTURES]
    )
    return Exhibit(
        probe=stamped.probe,
        trigger=repr(trigger),
        family=family,
        target=target,
        difference_png=_difference(before, changed),
        pictures=pictures,
    )


@torch.inference_mode()
def case_exhibit(
    before: Classifier, after: Classifier, known: Known, images: Tensor, labels: Tensor
) -> CaseExhibit:
    """A trigger on judge images that the suspect sends where it wants, of several classes.

    Args:
        before: The suspect.
        after: The purified model.
        known: The trigger, and where it sends which class.
        images: ``(N, C, H, W)`` uint8 on the classifiers' device.
        labels: ``(N,)`` int64 on the CPU.
    """
    originals, labels = as_float(images[:LOOKED_AT]), labels[:LOOKED_AT]
    stamped = known.stamped.trigger(originals)
    views = [
        classifier.logits(part).softmax(1).cpu()
        for classifier in (before, after)
        for part in (originals, stamped)
    ]
    moved = known.hits(decided(views[1]), labels)
    cases = []
    for index in _of_many_classes(moved, labels)[:PICTURES]:
        tops = [view[index].max(0) for view in views]
        (p, k), (ps, ks), (q, j), (qs, js) = ((float(t.values), int(t.indices)) for t in tops)
        cases.append(
            Case(
                label=int(labels[index]),
                clean_png=png_of(originals[index]),
                stamped_png=png_of(stamped[index]),
                clean_before=k, clean_before_probability=p,
                stamped_before=ks, stamped_before_probability=ps,
                clean_after=j, clean_after_probability=q,
                stamped_after=js, stamped_after_probability=qs,
            )
        )  # fmt: skip
    targets = set(known.mapping) - {-1}
    return CaseExhibit(
        probe=known.stamped.probe,
        trigger=repr(known.stamped.trigger),
        target=next(iter(targets)) if len(targets) == 1 else None,
        difference_png=_difference(originals, stamped),
        cases=tuple(cases),
    )


def png_of(image: Tensor) -> str:
    """An image ``(C, H, W)`` in [0, 1] as base64 PNG."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _difference(before: Tensor, after: Tensor) -> str:
    """Where images change, on average; the largest change is white."""
    change = (after - before).abs().mean((0, 1))
    return png_of((change / change.max().clamp_min(1e-6)).unsqueeze(0))


def _of_many_classes(moved: Tensor, classes: Tensor) -> Sequence[int]:
    """Numbers of the images that are moved ``(N,)``, by their places among all of their class."""
    return sorted(
        moved.nonzero().flatten().tolist(),
        key=lambda index: int((classes[:index] == classes[index]).sum()),
    )
