"""Images to scan with when the user has none: noise, dead leaves, class impressions, mixes.

They are weaker evidence than real images: a finding must hold in two families of them, and
finding nothing proves little. Which made image counts is decided by the model: it must be sure of
it, and stay with its answer under a little noise.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from auditor.batchnorm import watched
from auditor.classifier import Classifier, as_float, synchronize
from auditor.progress import Notify, silent

SURE = 0.5
"""Largest softmax probability that a made image must reach, at the temperature below."""
TYPICAL_SPREAD = 3.0
"""Scores are brought to this standard deviation over the classes first (`spread`), so that
multiplying a model's logits by a constant changes nothing."""
NOISE = 2 / 255
"""Standard deviation of the noise under which the answer must stay."""
LARGEST_SHARE = 0.3
"""No class may make up more of an accepted family…"""
LEAST_EVEN = 1.5
"""…or than so many times its even share, where there are few classes."""
FEWEST_IMAGES = 24

NATURAL_MIX = ((0.78, 0.18, -0.06), (0.80, 0.00, 0.10), (0.78, -0.20, -0.06))
"""Colours of natural pictures: mostly shared brightness, some red-blue, little green-magenta."""

IMPRESSIONS = 128
IMPRESSION_STEPS = 200
TOGETHER = 64
"""Impressions whose BatchNorm statistics are those of one batch, whatever batch size is fastest."""
BATCHNORM_WEIGHT = 0.01
VARIATION_WEIGHT = 1e-4
NORM_WEIGHT = 1e-5
JITTER = 2

Shape = tuple[int, int, int, int]


def smooth_noise(shape: Shape, generator: torch.Generator) -> Tensor:
    """Half uniform noise, half 1/f noise: ``(N, C, H, W)`` float32 in [0, 1]."""
    half = shape[0] // 2
    rough = torch.rand((shape[0] - half, *shape[1:]), generator=generator)
    return torch.cat([rough, as_float(colour_noise((half, *shape[1:]), generator))])


def colour_noise(shape: Shape, generator: torch.Generator) -> Tensor:
    """Noise with the spectrum ``1/f^b`` (b uniform in 0.8 to 1.6) and natural colours, uint8."""
    count, channels, height, width = shape
    fy = torch.fft.fftfreq(height).view(-1, 1)
    fx = torch.fft.rfftfreq(width).view(1, -1)
    radius = (fy**2 + fx**2).sqrt().clamp_min(1 / max(height, width))
    slope = 0.8 + 0.8 * torch.rand((count, 1, 1, 1), generator=generator)
    spectrum = torch.fft.rfft2(torch.randn((count, 3, height, width), generator=generator))
    fields = torch.fft.irfft2(spectrum * radius**-slope, s=(height, width))
    fields = (fields - fields.mean((2, 3), keepdim=True)) / fields.std((2, 3), keepdim=True)
    mixed = torch.einsum("dc,nchw->ndhw", torch.tensor(NATURAL_MIX), fields)
    level = 0.3 + 0.4 * torch.rand((count, 1, 1, 1), generator=generator)
    return _eight_bits(level + 0.22 * mixed, channels)


def dead_leaves(shape: Shape, generator: torch.Generator, leaves: int = 60) -> Tensor:
    """Overlapping discs and boxes with sizes like those of natural scenes, uint8.

    Lee, Mumford, Huang, "Occlusion models for natural images" (IJCV 2001): radii with density
    ``r^-3``, each leaf in front of the earlier ones.
    """
    count, channels, height, width = shape
    side = max(height, width)
    y = torch.arange(height).view(1, -1, 1)
    x = torch.arange(width).view(1, 1, -1)
    picture = torch.rand((count, 3, 1, 1), generator=generator).expand(-1, -1, height, width)
    for _ in range(leaves):
        u = torch.rand((count, 8), generator=generator)
        smallest, largest = 0.04 * side, 0.5 * side
        radius = (u[:, 0] * (largest**-2 - smallest**-2) + smallest**-2).rsqrt().view(-1, 1, 1)
        dy = y - (u[:, 1] * height).view(-1, 1, 1)
        dx = x - (u[:, 2] * width).view(-1, 1, 1)
        aspect = (0.4 + u[:, 3]).view(-1, 1, 1)
        disc = dy**2 + dx**2 < radius**2
        box = (dy.abs() < radius) & (dx.abs() < radius * aspect)
        inside = torch.where((u[:, 4] < 0.5).view(-1, 1, 1), disc, box).unsqueeze(1)
        grey = u[:, 5:6]
        colour = (0.55 * grey + 0.45 * torch.rand((count, 3), generator=generator)).view(
            -1, 3, 1, 1
        )
        shade = 1 + 0.25 * (u[:, 6].view(-1, 1, 1) - 0.5) * (dy / side)
        picture = torch.where(inside, colour * shade.unsqueeze(1), picture)
    return _eight_bits(picture, channels)


def _eight_bits(images: Tensor, channels: int) -> Tensor:
    if channels == 1:
        images = images.mean(1, keepdim=True)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def class_impressions(
    classifier: Classifier,
    classes: int,
    generator: torch.Generator,
    *,
    notify: Notify = silent,
    deadline: float = math.inf,
) -> Tensor | None:
    """Images that the model takes for its classes, made from the model alone.

    Gradient descent on cross entropy, on the distance of BatchNorm statistics from the running
    ones, total variation and norm, with shifts (after DeepInversion: Yin et al., CVPR 2020).

    Args:
        classifier: Must be differentiable.
        classes: K; of more than 128, an even sample gets impressions.
        generator: Of the starting noise.
        notify: Progress.
        deadline: `time.monotonic` value; steps are cut to fit, and None returned if they cannot.

    Returns:
        ``(N, C, H, W)`` uint8 on the CPU, about 128 images, or None.
    """
    spec = classifier.spec
    chosen = torch.linspace(0, classes - 1, min(classes, IMPRESSIONS)).round().long()
    targets = chosen.repeat(max(1, IMPRESSIONS // len(chosen))).to(classifier.device)
    shape = (len(targets), spec.channels, spec.height, spec.width)
    begun = colour_noise(shape, generator)
    scale = TYPICAL_SPREAD / spread(classifier, begun)
    images = as_float(begun).to(classifier.device).requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=0.05)
    distances: list[Tensor] = []
    begin, steps = time.monotonic(), IMPRESSION_STEPS
    step = 0
    with watched(classifier.model.module, lambda *seen: distances.append(_statistics_loss(*seen))):
        while step < steps:
            shift = torch.randint(-JITTER, JITTER + 1, (2,), generator=generator).tolist()
            for start in range(0, len(images), TOGETHER):
                part = slice(start, start + TOGETHER)
                distances.clear()
                view = images[part].roll(shift, dims=(2, 3))
                logits = classifier(view)
                if not logits.requires_grad:
                    return None  # the scores do not depend on the image
                loss = functional.cross_entropy(scale * logits, targets[part], reduction="sum")
                loss = loss + len(view) * BATCHNORM_WEIGHT * sum(
                    distances, torch.zeros(()).to(loss)
                )
                rough = view.diff(dim=2).abs().sum() + view.diff(dim=3).abs().sum()
                loss = loss + VARIATION_WEIGHT * rough + NORM_WEIGHT * view.square().sum()
                loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
            with torch.no_grad():
                images.clamp_(0, 1)
            step += 1
            synchronize(classifier.device)
            if step == 3:
                left = deadline - time.monotonic()
                possible = left / ((time.monotonic() - begin) / 3)
                if possible < IMPRESSION_STEPS / 4:
                    return None
                steps = int(min(steps, possible))
            notify("making class impressions", step, steps)
    return _eight_bits(images.detach(), spec.channels).cpu()


def _statistics_loss(
    layer: nn.BatchNorm2d, mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor
) -> Tensor:
    """Distance of a batch's statistics from the running ones: norms of both differences."""
    distance: Tensor = (mean - running_mean).norm() + (variance - running_var).norm()
    return distance


def mixes(impressions: Tensor, generator: torch.Generator) -> Tensor:
    """Class impressions with a box of another one pasted in (CutMix): ``(N, C, H, W)`` uint8."""
    count, _, height, width = impressions.shape
    other = impressions[torch.randperm(count, generator=generator)]
    u = torch.rand((count, 3), generator=generator)
    side = (0.3 + 0.3 * u[:, 0]).view(-1, 1, 1)
    y = (torch.arange(height).view(1, -1, 1) / height - u[:, 1].view(-1, 1, 1) * (1 - side)) / side
    x = (torch.arange(width).view(1, 1, -1) / width - u[:, 2].view(-1, 1, 1) * (1 - side)) / side
    inside = ((y >= 0) & (y < 1) & (x >= 0) & (x < 1)).unsqueeze(1)
    return torch.where(inside, other, impressions)


def spread(classifier: Classifier, images: Tensor) -> float:
    """Standard deviation of a model's scores over the classes, typical of some images.

    Scores that are no numbers, or infinite, are left out; 1 where there are no others.
    """
    rows = [row[row.isfinite()] for row in classifier.logits(images).cpu().double()]
    spreads = torch.tensor([float(row.std()) for row in rows if len(row) > 1])
    return max(float(spreads.median()), 1e-12) if len(spreads) else 1.0


def accepted(
    classifier: Classifier,
    images: Tensor,
    classes: int,
    generator: torch.Generator,
    *,
    typical_spread: float,
) -> tuple[Tensor, str]:
    """The made images that the model is sure of, and why there are none.

    Args:
        classifier: The suspect.
        images: ``(N, C, H, W)`` uint8.
        classes: K.
        generator: Of the noise that an answer must survive.
        typical_spread: `spread` of the model on images that it is sure of.

    Returns:
        The images that count, empty with a reason where the family as a whole does not.
    """
    before = (classifier.logits(images) * (TYPICAL_SPREAD / typical_spread)).softmax(1)
    noise = NOISE * torch.randn(images.shape, generator=generator)
    shaken = classifier.predict((as_float(images) + noise).clamp(0, 1))
    confidence, predicted = before.cpu().max(1)
    usable = ((confidence >= SURE) & (shaken == predicted)).nonzero().flatten().tolist()
    members: dict[int, list[int]] = {}
    for index in usable:
        members.setdefault(int(predicted[index]), []).append(index)
    if len(members) < min(classes, 8):
        return images[:0], (
            f"the model takes them for only {len(members)} of {classes} classes with confidence"
        )
    # The largest cap on a class's images that keeps it below the share, given the other classes.
    share = max(LARGEST_SHARE, LEAST_EVEN / classes)
    cap = max(
        size
        for size in range(1, len(usable) + 1)
        if size == 1 or size <= share * sum(min(size, len(chosen)) for chosen in members.values())
    )
    kept = sorted(index for chosen in members.values() for index in chosen[:cap])
    if len(kept) < FEWEST_IMAGES:
        return images[:0], f"only {len(kept)} of {len(images)} are accepted by the model"
    return images[kept], ""
