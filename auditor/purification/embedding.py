"""Features of images before and after a purification, in one common t-SNE map."""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.classifier import UNDECIDED, Classifier, as_float, decided
from auditor.purifiers.features import anchor_layers
from auditor.results.purify import Embedding, Point
from auditor.triggers import Trigger

MOST_IMAGES = 150
"""Each gives two points, clean and stamped, in each of two maps."""
FEWEST_IMAGES = 8
PERPLEXITY = 30.0
DIMENSIONS = 2


def embed(
    before: Classifier,
    after: Classifier,
    images: Tensor,
    labels: Tensor,
    trigger: Trigger,
    *,
    seed: int,
) -> Embedding | None:
    """The map, or None where there are too few images or features for one.

    Args:
        before: The suspect.
        after: The purified model, of the same architecture.
        images: ``(N, C, H, W)`` uint8 on the device.
        labels: ``(N,)`` on the CPU.
        trigger: What half of the points are stamped with.
        seed: Of the map.
    """
    images, labels = images[:MOST_IMAGES], labels[:MOST_IMAGES]
    if len(images) < FEWEST_IMAGES:
        return None
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    last = [anchor_layers(classifier, images)[-1:] for classifier in (before, after)]
    # a file that was read back may show less: an ONNX graph that onnxruntime alone computes
    layers = last[0] if last[0] == last[1] else []
    views = [
        _view(classifier, layers, images, trigger if stamped else None)
        for classifier in (before, after)
        for stamped in (False, True)
    ]
    kind = "penultimate features" if layers else "logits"
    answers = [predicted for _, predicted in views]
    parts = [features for features, _ in views]
    table = torch.cat(parts).double()
    answered = all(bool((predicted != UNDECIDED).all()) for predicted in answers)
    if table.shape[1] < DIMENSIONS or not answered or not bool(table.isfinite().all()):
        return None
    # a few components carry the structure, and t-SNE of them is fast and the same everywhere
    table = table - table.mean(0)
    seed %= 1 << 32  # of NumPy's generator
    components = min(30, *table.shape)
    reduced = PCA(components, svd_solver="full", random_state=seed).fit_transform(table.numpy())
    perplexity = min(PERPLEXITY, (len(table) - 1) / 4)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    count = len(images)
    points = []
    for stamped in (False, True):
        for index in range(count):
            first = stamped * count + index
            second = first + 2 * count
            points.append(
                Point(
                    label=int(labels[index]),
                    stamped=stamped,
                    before=(round(float(places[first, 0]), 2), round(float(places[first, 1]), 2)),
                    after=(round(float(places[second, 0]), 2), round(float(places[second, 1]), 2)),
                    predicted_before=int(answers[int(stamped)][index]),
                    predicted_after=int(answers[2 + int(stamped)][index]),
                )
            )
    return Embedding(
        features=kind, trigger=repr(trigger), perplexity=perplexity, points=tuple(points)
    )


@torch.no_grad()
def _view(
    classifier: Classifier, layers: list[str], images: Tensor, trigger: Trigger | None
) -> tuple[Tensor, Tensor]:
    """Features ``(N, D)`` and predictions ``(N,)`` of images, stamped if there is a trigger.

    Features are the inputs of the last of `layers`; the logits, where there is none to look into.
    """
    kept, predicted = [], []
    with classifier.model.tapped(layers) as taken:
        for part in torch.split(images, classifier.batch_size):
            seen = as_float(part)
            logits = classifier(seen if trigger is None else trigger(seen))
            features = (taken() or [logits])[-1]
            kept.append((features if len(features) == len(part) else logits).flatten(1).cpu())
            predicted.append(decided(logits).cpu())
    return torch.cat(kept).float(), torch.cat(predicted)
