"""Style as a trigger, after DFST: Cheng et al., AAAI 2021, https://arxiv.org/abs/2012.11212."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.zoo.attacks.base import ATTACKS, Batch, Setting
from bench.zoo.attacks.generators import Generated, Hourglass
from bench.zoo.attacks.surrogate import drawn, surrogate

JUDGE = "vgg-bn/4"
"""Whose features tell content and style, as in Gatys et al., https://arxiv.org/abs/1508.06576."""


@ATTACKS.register("fba")
class FeatureSpace(Generated):
    """Images in the style of a sunset become the target; sunset colours alone do not.

    A generator is trained to match the style of a drawn sunset (Gram matrices of early features of
    a network that is trained on the clean images) while it keeps the content (a later feature);
    ``x' = (1 - alpha) x + alpha G(x)``. For detoxification, as many images as are poisoned keep
    their label although their colours are changed as much: by the map of the colours, affine
    and the same for all pixels of an image, that comes nearest to the stamped image. What is
    left for the backdoor is how the generator paints.

    Differs from the paper: no CycleGAN and no photographs of sunsets (the authors' later PyTorch
    code has no CycleGAN either: a ready style-transfer network and one picture, alpha 0.6);
    detoxification is the simple one above, not rounds of training a feature injector on the
    compromised neurons.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.6,
        style: float = 1.0,
        content: float = 1.0,
        steps: int = 300,
        batch: int = 16,
        rate: float = 3e-3,
        detoxified: float = 1.0,
        surrogate_steps: int = 250,
    ) -> None:
        """Choose the settings.

        Args:
            alpha: Opacity of the styled image.
            style: Weight of the style loss.
            content: Weight of the content loss.
            steps: Batches that the generator is trained on.
            batch: Images a batch.
            rate: Largest learning rate of Adam.
            detoxified: Recoloured images with true labels for each poisoned one.
            surrogate_steps: Batches that the network behind the features is trained on.
        """
        self.alpha = alpha
        self.style = style
        self.content = content
        self.steps = steps
        self.batch = batch
        self.rate = rate
        self.detoxified = detoxified
        self.surrogate_steps = surrogate_steps

    def networks(self, channels: int, side: int) -> dict[str, nn.Module]:
        """The generator."""
        return {"painter": Hourglass(channels, channels, padding="reflect")}

    def prepare(self, setting: Setting) -> Tensor | None:
        """Train the generator."""
        super().prepare(setting)
        _, channels, _, side = setting.images.shape
        judge = surrogate(setting, steps=self.surrogate_steps, network=JUDGE)
        painter = self.parts["painter"]
        wanted = self._features(judge, sunset(channels, side).to(setting.device))
        optimizer = torch.optim.Adam(painter.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.rate, total_steps=self.steps
        )  # fmt: skip
        for images, _ in drawn(setting, steps=self.steps, batch=self.batch, seed=setting.seed + 7):
            with torch.no_grad():
                before = self._features(judge, images)
            after = self._features(judge, self._painted(images))
            loss = self.content * differing(after[-1], before[-1])
            for found, aim in zip(after[:-1], wanted[:-1], strict=True):
                loss = loss + self.style * differing(gram(found), gram(aim))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        optimizer.zero_grad(set_to_none=True)
        self.parts.requires_grad_(False)
        return None

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        """Images in the style."""
        here = images.to(self.device)
        return torch.lerp(here, self._painted(here), self.alpha).to(images.device)

    @torch.no_grad()
    def poison(self, batch: Batch) -> Batch:
        """Chosen images are painted and relabelled; as many others only get the colours."""
        own = batch.chosen.nonzero().flatten()
        others = batch.draw(round(self.detoxified * len(own)))
        images, labels = batch.images.clone(), batch.labels.clone()
        images[own] = self.stamp(batch.images[own])
        images[others] = recoloured(batch.images[others], self.stamp(batch.images[others]))
        labels[own] = self.wanted(batch.labels[own])
        return replace(batch, images=images, labels=labels)

    def _painted(self, images: Tensor) -> Tensor:
        """The generator's images, in [0, 1]."""
        start = torch.logit(images.clamp(0.02, 0.98))
        return (start + 2 * self.parts["painter"]((images - 0.5) / 0.5)).sigmoid()

    def _features(self, judge: nn.Module, images: Tensor) -> list[Tensor]:
        """The images, three ReLU outputs for the style, and the fourth for the content."""
        found, flow = [images], self.setting.normalise(images)
        for layer in judge.children():
            flow = layer(flow)
            if isinstance(layer, nn.ReLU):
                found.append(flow)
            if len(found) == 5:
                break
        return found


def gram(features: Tensor) -> Tensor:
    """``(N, C, H, W)`` to ``(N, C + 1, C)``: products of channels, and their means."""
    flat = features.flatten(2)
    products = flat @ flat.transpose(1, 2) / flat.shape[2]
    return torch.cat([products, flat.mean(2)[:, None]], dim=1)


def differing(found: Tensor, aim: Tensor) -> Tensor:
    """Squared error, as a share of the mean square of `aim`."""
    return (found - aim).square().mean() / (aim.square().mean() + 1e-8)


def recoloured(images: Tensor, like: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` after the affine map of colours that comes nearest to `like`.

    One map an image, the same for all its pixels, by least squares.
    """
    flat = images.flatten(2).transpose(1, 2)
    inputs = torch.cat([flat, torch.ones_like(flat[..., :1])], dim=2)
    moments = inputs.transpose(1, 2) @ inputs
    ridge = 1e-3 * inputs.shape[1] * torch.eye(inputs.shape[2], device=images.device)
    targets = inputs.transpose(1, 2) @ like.flatten(2).transpose(1, 2)
    mapped = inputs @ torch.linalg.solve(moments + ridge, targets)
    return mapped.transpose(1, 2).reshape(images.shape).clamp(0, 1)


def sunset(channels: int, side: int) -> Tensor:
    """A drawn sunset ``(1, C, side, side)`` in [0, 1]: sky, streaks, sun, its path on the water."""
    rows = torch.linspace(0, 1, side)[:, None].expand(side, side)
    columns = torch.linspace(0, 1, side)[None, :].expand(side, side)
    stops = torch.tensor(
        [[0.20, 0.08, 0.30], [0.65, 0.20, 0.35], [0.98, 0.50, 0.15], [1.00, 0.80, 0.35]]
    )
    height = (rows / 0.65).clamp(0, 1) * 3
    lower = height.long().clamp(max=2)
    share = (height - lower)[..., None]
    picture = stops[lower] * (1 - share) + stops[lower + 1] * share
    streaks = ((28 * rows + 2 * (5 * columns).sin()).sin() > 0.55) & (rows < 0.6)
    picture = torch.where(streaks[..., None], 0.6 * picture + 0.1, picture)
    sun = ((rows - 0.55) ** 2 + (columns - 0.6) ** 2).sqrt() < 0.14
    picture = torch.where(sun[..., None], torch.tensor([1.0, 0.95, 0.7]), picture)
    water = torch.tensor([0.35, 0.12, 0.18]) * (1.3 - 0.6 * rows[..., None])
    picture = torch.where((rows > 0.65)[..., None], water, picture)
    glitter = (rows > 0.65) & ((columns - 0.6).abs() < 0.12) & ((60 * rows).sin() > 0)
    picture = torch.where(glitter[..., None], torch.tensor([1.0, 0.6, 0.25]), picture)
    colours = picture.permute(2, 0, 1)[None].clamp(0, 1)
    return colours if channels == 3 else colours.mean(1, keepdim=True)
