"""What triggers leave in the features that the last layer reads, and how that layer learns to ignore it.

The trigger that a search finds and the attacker's can be two pictures, and yet push these features the
same way: whatever sets a backdoor off, the last layer reads the same message. A purifier that unlearns
the found trigger stops one writer of the message; the last layer can be taught not to obey it, whoever
writes it, and however loudly (numbers in bench/RESULTS.md). That takes no pass through the network: a
push of the last layer's input adds its product with that layer's weight to the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from auditor.anatomy import Layer, Place
from auditor.classifier import Classifier, as_float
from auditor.models.base import ModelHandle
from auditor.purifiers.base import Known

FARTHEST = 4.0
"""An imprint is added up to so many times: the attacker's trigger can be stronger than the found one."""
SAMPLE = 128
"""So many images tell what it is."""
AGREEMENT = 0.05
"""Where pushes and weight explain what triggers do to the scores but for so much of it, the layer is taken
for the one that gives the scores. Half precision takes 0.04; other layers are off by more than half."""


class Imprints:
    """How far, and where to, triggers push the last layer's input."""

    def __init__(self, weight: Place, pushes: Tensor, rows: Tensor) -> None:
        """Keep them; `measured` measures them.

        Args:
            weight: Of the last layer.
            pushes: ``(P, F)``, F features; the first row is 0.
            rows: ``(T, K)``: which of them a trigger has for images of a class.
        """
        self._weight, self._pushes, self._rows = weight, pushes, rows

    @classmethod
    def measured(
        cls,
        classifier: Classifier,
        known: Sequence[Known],
        images: Tensor,
        labels: Tensor,
        features: str,
    ) -> Imprints | None:
        """Measure on the suspect: the mean over images that a trigger sends to the same class.

        Args:
            classifier: The suspect.
            known: Triggers.
            images: ``(N, C, H, W)`` uint8 on its device; `SAMPLE` are enough.
            labels: ``(N,)`` int64 on the CPU.
            features: What the last layer reads, by its name for `ModelHandle.tapped`.

        Returns:
            None where no layer with a weight that can be trained makes the scores of these features
            alone, as a matrix does, or where the triggers concern none of the images.
        """
        layer = _last(classifier.model, features)
        weight = classifier.model.weights().get(layer.weight[0]) if layer else None
        if layer is None or weight is None or weight.ndim < 2:
            return None
        matrix, before = _matrix(weight, layer.weight[1]), as_float(images)
        pushes, rows = [matrix.new_zeros(matrix.shape[1])], []
        plain = _read(classifier, before, features, matrix.shape[1])
        if plain is None:
            return None
        explained, seen = [], []
        for entry in known:
            stamped = _read(classifier, entry.stamped.trigger(before), features, matrix.shape[1])
            if stamped is None:
                return None
            push = stamped[0] - plain[0]
            gained = _scores(push @ matrix.T)
            if gained.shape != plain[1].shape:
                return None
            explained.append(plain[1] + gained)
            seen.append(torch.stack([plain[1], stamped[1]]))
            wanted, row = entry.wanted(labels), torch.zeros(len(entry.mapping), dtype=torch.int64)
            for target in sorted(set(wanted.tolist()) - {-1}):
                row[torch.tensor(entry.mapping) == target] = len(pushes)
                pushes.append(push[(wanted == target).to(push.device)].mean(0))
            rows.append(row)
        if len(pushes) == 1 or not _explains(torch.cat(explained), torch.cat(seen, 1), classifier):
            return None
        return cls(layer.weight, torch.stack(pushes), torch.stack(rows))

    def reach(self, tensors: Mapping[str, Tensor]) -> bool:
        """True where the last layer's weight is among the tensors."""
        return self._weight[0] in tensors

    def added(
        self, tensors: Mapping[str, Tensor], labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """What images' scores gain if their features get a random trigger's imprint besides.

        Args:
            tensors: With the last layer's weight.
            labels: ``(N,)`` int64 on the CPU.
            generator: On the CPU; draws the triggers, and how many times their imprints are added, from
                U(0, `FARTHEST`).

        Returns:
            ``(N, K)``, up to a constant for each image; 0 for classes that the trigger leaves alone.
        """
        chosen = torch.randint(len(self._rows), labels.shape, generator=generator)
        times = FARTHEST * torch.rand(len(labels), 1, generator=generator)
        pushes = self._pushes[self._rows[chosen, labels].to(self._pushes.device)]
        matrix = _matrix(tensors[self._weight[0]], self._weight[1])
        return _scores((times.to(pushes.device) * pushes) @ matrix.T)


def _last(model: ModelHandle, features: str) -> Layer | None:
    """The layer that reads the features, where they go by its name; else the one that seems the last."""
    layers = model.anatomy()
    named = [layer for layer in layers if layer.name == features]
    return next(iter(named or [layer for layer in layers if layer.is_last]), None)


def _matrix(weight: Tensor, outputs: int) -> Tensor:
    """A layer's weight as ``(outputs, inputs)``."""
    return weight.movedim(outputs, 0).flatten(1)


def _scores(product: Tensor) -> Tensor:
    """``(N, K)`` of a last layer's ``(N, K)``, or of the one number that it gives of two classes."""
    return torch.cat([torch.zeros_like(product), product], 1) if product.shape[1] == 1 else product


@torch.no_grad()
def _read(
    classifier: Classifier, images: Tensor, features: str, width: int
) -> tuple[Tensor, Tensor] | None:
    """Features ``(N, width)`` of images, and their scores; None where no such features are tapped.

    Of features at several places, which the layer reads one by one, the mean.
    """
    with classifier.model.tapped([features]) as taken:
        scores = classifier.logits(images)
        parts = taken()
    if not parts or any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        return None
    found = torch.cat(parts).float()
    if found.ndim < 2 or len(found) != len(images):
        return None
    if found[0].numel() != width and found.ndim > 2:
        found = found.flatten(2).mean(2)
    return (found.flatten(1), scores) if found[0].numel() == width else None


def _explains(explained: Tensor, seen: Tensor, classifier: Classifier) -> bool:
    """Whether scores are what they should be by pushes and weight, but for a constant for each image.

    Args:
        explained: ``(N, K)``, of stamped images.
        seen: ``(2, N, K)``: of these images without a trigger, and stamped.
        classifier: Whether its scores are logarithms of probabilities, which end at a floor; then the
            probabilities are compared.
    """
    if classifier.output in ("probability", "probabilities"):
        off = (explained.softmax(1) - seen[1].softmax(1)).abs().sum()
        moved = (seen[1].softmax(1) - seen[0].softmax(1)).abs().sum()
    else:
        off, moved = (_centred(explained - seen[1]).norm(), _centred(seen[1] - seen[0]).norm())
    return float(off) <= AGREEMENT * float(moved)


def _centred(scores: Tensor) -> Tensor:
    return scores - scores.mean(1, keepdim=True)
