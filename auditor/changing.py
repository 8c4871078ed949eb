"""What changing a model's numbers needs, whoever changes them: images with labels, and a file.

The changed model is written under another name, read back and compared before anyone is told that
it exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from auditor.classifier import Classifier
from auditor.errors import ImageError, OutputError, UnsuitableModel
from auditor.images.source import CleanSet, ImageSource, Without, digests
from auditor.inputs import blank_spec
from auditor.models.base import ModelHandle
from auditor.models.load import load_model
from auditor.outputs import default_mode
from auditor.progress import Notify
from auditor.purifiers.base import changed_classifier
from auditor.results.facts import Caveat, SplitFacts
from auditor.results.purify import SideFile, Written
from auditor.results.scan import ScanResult
from auditor.scores import described
from auditor.text import clean_text

WRITTEN_TOLERANCE = 1e-3
"""Largest difference of a logit between file and model, relative to the largest logit, where the
model has the numbers of the file; a wrong tensor shows at another size."""
STORED_TOLERANCE = 2**-8
"""Largest relative difference of a number in the file from what it should be: bfloat16 rounds at
this size, other types at smaller ones."""


def refuse_unchangeable(model: ModelHandle, what: str) -> None:
    """Refuse a model without weights and gradients.

    Args:
        model: The suspect.
        what: What cannot be done with it, such as "purified".

    Raises:
        UnsuitableModel: It has none; says what to use instead.
    """
    if not model.differentiable or not model.weights():
        raise UnsuitableModel(
            f"{clean_text(model.file.path.name)}: {model.file.kind} can be scanned, but not {what}: it has "
            "no weights that auditor could change by gradients. Use the PyTorch file it was exported from."
        )


def refuse_unsound(found: ScanResult, whose: str = "") -> None:
    """Counts of images that do not fit the model mean nothing.

    Args:
        found: A scan with these images.
        whose: What is said before where they are not recognised: which images, where others are.

    Raises:
        ImageError: A scan says that they do not.
    """
    blocking = next((caveat for caveat in found.caveats if caveat.blocking), None)
    if blocking is not None:
        raise ImageError(f"{whose if blocking.id == 'accuracy' else ''}{blocking.text}")


def settled(model: ModelHandle, found: ScanResult) -> Classifier:
    """The model with its input prepared as a scan of it found."""
    return Classifier(
        model,
        found.preprocessing.spec,
        output=found.model.output,
        batch_size=int(found.provenance.options["batch_size"]),
    )


def labelled(
    classifier: Classifier, source: ImageSource, classes: int, notify: Notify
) -> tuple[Tensor, Tensor]:
    """All images of a source, with labels or what stands for them.

    Returns:
        ``(N, C, H, W)`` uint8 on the classifier's device, and ``(N,)`` int64 on the CPU: labels, or
        the model's predictions where there are none.

    Raises:
        ImageError: A label is none of the model's classes.
        UnsuitableModel: The model's scores for an image that has no label name no class.
    """
    spec = classifier.spec
    size = blank_spec((spec.channels, spec.height, spec.width))
    clean = source.load(range(source.count), size, notify)
    images = clean.images.to(classifier.device)
    labels = clean.labels
    if labels is None:
        labels = classifier.answers(images)
    if int(labels.max()) >= classes:
        raise ImageError(
            f"{clean_text(source.name)}: label {int(labels.max())} is beyond the model's "
            f"{described(classifier.output, classes)}, numbered from 0 to {classes - 1}."
        )
    return images, labels


def shared(fitted: Tensor, images: Tensor) -> int:
    """How many of `images` are copies of one that is fitted on; both ``(N, C, H, W)`` uint8."""
    known = set(digests(fitted))
    return sum(digest in known for digest in digests(images))


def without_copies(source: ImageSource, fitted: Tensor) -> ImageSource:
    """The images of a source that are no copies of those which are fitted on."""
    return Without(source, set(digests(fitted)))


def said_of_shared(shared: int, judged: int) -> Caveat:
    """That so many of the images to judge by were left out."""
    return Caveat(
        id="shared-images",
        text=f"{shared} of {judged} images to judge by are copies of fitted ones, and were left out.",
    )


def split_facts(images: Tensor, labels: Tensor, classes: int) -> SplitFacts:
    """The record of one part of the clean set; arguments as `labelled` returns them."""
    return SplitFacts(
        images=len(images),
        members=tuple(torch.bincount(labels, minlength=classes).tolist()),
        digest=CleanSet(images=images.cpu(), labels=labels).digest(),
    )


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A changed model as a file that is there only for now."""

    facts: Written
    classifier: Classifier
    """The file, loaded again."""
    path: Path
    target: Path

    def keep(self) -> None:
        """Move the file, and what belongs to it, to where it shall stay, replacing what is there."""
        for name in (*(file.name for file in self.facts.beside), self.path.name):
            staged = self.path.with_name(name)
            staged.chmod(default_mode())
            staged.replace(self.target.with_name(name))


@contextlib.contextmanager
def staged(
    classifier: Classifier,
    tensors: Mapping[str, Tensor],
    images: Tensor,
    output: Path | None,
    *,
    made: str,
    arch: str | None = None,
    finish: Callable[[Path], object] = lambda path: None,
) -> Iterator[Staged]:
    """Write a changed model under another name, read it back, and take it away again unless kept.

    Args:
        classifier: The suspect.
        tensors: Name -> new values.
        images: ``(N, C, H, W)`` uint8 that the file and the changed model are compared on.
        output: Where it may stay; None for nowhere.
        made: How it was changed, such as "purified", for messages.
        arch: As given to `load_model`, to read it back.
        finish: What else is done to the file before it is read back.

    Raises:
        OutputError: It cannot be written, or does not compute what was measured.
    """
    model = classifier.model
    target = output or model.file.path
    folder = output.parent if output else Path(tempfile.gettempdir())
    try:
        staging = tempfile.TemporaryDirectory(prefix=".auditor-", dir=folder)
    except OSError as error:
        raise OutputError(
            f"{clean_text(str(folder))} is not writable ({error.strerror})."
        ) from None
    with staging as inner:
        path = Path(inner) / target.name
        model.write(tensors, path)
        finish(path)
        # found out again, the network could be another: other numbers, another guess
        known = arch or next(iter(model.alternatives), None)
        loaded = load_model(path, arch=known, device=model.device)
        loaded.file = replace(loaded.file, path=target)
        after = classifier.of(loaded)
        stored, equal = _as_stored(tensors, loaded.tensors())
        expected, read = (
            _comparable(network).logits(images)
            for network in (changed_classifier(classifier, stored), after)
        )
        difference = float((expected - read).abs().max())
        tolerance = max(WRITTEN_TOLERANCE, loaded.rounding)
        if not equal or not difference <= tolerance * max(1.0, float(expected.abs().max())):
            raise OutputError(
                f"{clean_text(target.name)}: the written file does not compute what was {made} (outputs "
                f"differ by up to {difference:.3g}), so it was not kept. Please report this."
            )
        written = Written(
            name=target.name,
            sha256=loaded.file.sha256,
            bytes=loaded.file.bytes,
            format=str(loaded.file.kind),
            tensors=len(tensors),
            largest_difference=difference,
            compared=len(expected),
            beside=tuple(map(_side_file, model.side_files(path))),
        )
        yield Staged(facts=written, classifier=after, path=path, target=target)


def _comparable(classifier: Classifier) -> Classifier:
    """Of one probability near 1, the last digit decides the logit: it is compared as it is returned."""
    if classifier.output != "probability":
        return classifier
    return Classifier(
        classifier.model, classifier.spec, output=None, batch_size=classifier.batch_size
    )


def _as_stored(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], bool]:
    """`wanted` as rounded to what a file stores, and whether that is all that was done to them."""
    stored = {name: found.get(name, values) for name, values in wanted.items()}
    equal = all(
        torch.allclose(
            stored[name].cpu().double(),
            values.cpu().double(),
            rtol=STORED_TOLERANCE,
            atol=1e-6,  # half precision has few digits for small numbers
            equal_nan=True,
        )
        for name, values in wanted.items()
    )
    return stored, equal


def _side_file(path: Path) -> SideFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SideFile(name=path.name, sha256=digest, bytes=path.stat().st_size)
