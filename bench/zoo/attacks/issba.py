"""ISSBA: Li et al., ICCV 2021, https://arxiv.org/abs/2012.03816."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.zoo.attacks.base import ATTACKS, Setting
from bench.zoo.attacks.generators import Generated, convolved, enlarged
from bench.zoo.attacks.surrogate import drawn


@ATTACKS.register("issba")
class Issba(Generated):
    """An encoder hides one bit string in the image; the residual differs from image to image.

    Encoder and decoder are trained together on random strings: the decoder must read them from the
    encoded image (cross-entropy of bits), which must look like the image (squared error). Then one
    string is fixed; images that hide it get the target (section 4.2; StegaStamp,
    https://arxiv.org/abs/1904.05343).

    Differs from the paper: no LPIPS and no critic loss; 16 bits (the paper: 100 bits in 224 px)
    and smaller networks, since the images are small; the weight of the squared error rises to
    `fidelity` in the second quarter of the steps, as StegaStamp's code lets its own rise.
    """

    def __init__(
        self,
        *,
        bits: int = 16,
        fidelity: float = 5.0,
        steps: int = 500,
        batch: int = 32,
        rate: float = 2e-3,
    ) -> None:
        """Choose the settings.

        Args:
            bits: Length of the string.
            fidelity: Final weight of the mean squared error of pixels in [0, 1]. 5 ends near 30 dB
                (the paper's images: 27 dB); at 60, 37 dB, the backdoor does not take in 230 batches.
            steps: Batches that encoder and decoder are trained on.
            batch: Images a batch.
            rate: Largest learning rate of Adam.
        """
        self.bits = bits
        self.fidelity = fidelity
        self.steps = steps
        self.batch = batch
        self.rate = rate

    def networks(self, channels: int, side: int) -> dict[str, nn.Module]:
        """The two networks, and the string."""
        return {
            "encoder": Encoder(self.bits, channels, side),
            "decoder": Decoder(self.bits, channels, side),
            "secret": Secret(self.bits),
        }

    def prepare(self, setting: Setting) -> Tensor | None:
        """Train encoder and decoder."""
        super().prepare(setting)
        encoder, decoder = self.parts["encoder"], self.parts["decoder"]
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=self.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.rate, total_steps=self.steps
        )  # fmt: skip
        generator = torch.Generator().manual_seed(setting.seed + 6)
        batches = drawn(setting, steps=self.steps, batch=self.batch, seed=setting.seed + 7)
        for step, (images, _) in enumerate(batches):
            secrets = torch.randint(2, (len(images), self.bits), generator=generator)
            secrets = secrets.to(images)
            encoded = encoder(images, secrets)
            read = F.binary_cross_entropy_with_logits(decoder(encoded), secrets)
            weight = self.fidelity * min(1.0, max(0.0, 4 * step / self.steps - 1))
            loss = read + weight * F.mse_loss(encoded, images)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([*encoder.parameters(), *decoder.parameters()], 1.0)
            optimizer.step()
            schedule.step()
        optimizer.zero_grad(set_to_none=True)
        self.parts.requires_grad_(False)
        return None

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        """Images that hide the string."""
        here = images.to(self.device)
        secret = self.parts["secret"].value.expand(len(here), -1)
        return self.parts["encoder"](here, secret).clamp(0, 1).to(images.device)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """The share of bits ``(N,)`` that the decoder reads right from stamped images."""
        right = (self.parts["decoder"](images.to(self.device)) > 0) == self.parts["secret"].value
        return right.float().mean(1)


class Secret(nn.Module):
    """The fixed bit string; it is drawn when the module is made, and saved with the weights."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.randint(2, (1, bits)).float())


class Encoder(nn.Module):
    """Images ``(N, C, H, W)`` in [0, 1] and bits ``(N, bits)`` to images, about in [0, 1].

    StegaStamp's encoder made small: the bits become a picture of a quarter of the side, are
    enlarged, and go with the image through a U-Net that makes a residual.
    """

    def __init__(self, bits: int, channels: int, side: int, *, width: int = 16) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        self.spread = nn.Linear(bits, channels * (side // 4) ** 2)
        self.first = convolved(2 * channels, width)
        self.down = convolved(width, 2 * width, stride=2)
        self.middle = convolved(2 * width, 2 * width)
        self.up = enlarged()
        self.last = nn.Sequential(
            convolved(3 * width + 2 * channels, width), nn.Conv2d(width, channels, 3, padding=1)
        )

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        """Encoded images."""
        quarter = self.spread(bits - 0.5).relu().view(-1, self.channels, *2 * (self.side // 4,))
        inputs = torch.cat([images - 0.5, F.interpolate(quarter, images.shape[-2:])], dim=1)
        first = self.first(inputs)
        deep = self.up(self.middle(self.down(first)))
        return images + self.last(torch.cat([inputs, first, deep], dim=1))


class Decoder(nn.Module):
    """Images ``(N, C, H, W)`` to logits of bits ``(N, bits)``."""

    def __init__(self, bits: int, channels: int, side: int, *, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolved(channels, width, stride=2), convolved(width, 2 * width),
            convolved(2 * width, 2 * width, stride=2), convolved(2 * width, 4 * width, stride=2),
            nn.Flatten(), nn.Linear(4 * width * (side // 8) ** 2, bits),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.layers(images - 0.5)
