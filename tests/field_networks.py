"""Networks of the field in their usual spelling, as references: written apart from auditor's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or inp != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Bottle(nn.Module):
    expansion = 4

    def __init__(self, inp: int, mid: int, stride: int) -> None:
        super().__init__()
        out = 4 * mid
        self.conv1, self.bn1 = nn.Conv2d(inp, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or inp != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class PreBasic(nn.Module):
    expansion = 1

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inp), nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        if stride != 1 or inp != out:
            self.shortcut = nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        x = self.shortcut(y) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + x


class PreBottle(nn.Module):
    expansion = 4

    def __init__(self, inp: int, mid: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inp), nn.Conv2d(inp, mid, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(mid), nn.Conv2d(mid, mid, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(mid), nn.Conv2d(mid, 4 * mid, 1, bias=False)
        if stride != 1 or inp != 4 * mid:
            self.shortcut = nn.Sequential(nn.Conv2d(inp, 4 * mid, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        x = self.shortcut(y) if hasattr(self, "shortcut") else x
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return self.conv3(F.relu(self.bn3(y))) + x


class FourStages(nn.Module):
    """The usual ResNet and PreActResNet for CIFAR-10, pooled over 4 by 4."""

    def __init__(
        self, block: type, counts: list[int], width: int, classes: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.post = not block.__name__.startswith("Pre")
        if self.post:
            self.bn1 = nn.BatchNorm2d(width)
        inp = width
        for stage, count in enumerate(counts):
            blocks = []
            for place in range(count):
                out = width * 2**stage
                blocks.append(block(inp, out, 2 if stage and not place else 1))
                inp = out * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inp, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.post:
            x = F.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class OptionA(nn.Module):
    """ResNet-20 and so on: three stages, shortcuts without weights."""

    class Block(nn.Module):
        def __init__(self, inp: int, out: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(out)
            self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(out)
            self.pad = out // 4 if inp != out else None

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.pad is not None:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return F.relu(y + x)

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        inp = 16
        for stage, out in enumerate((16, 32, 64), start=1):
            made = []
            for _ in range(blocks):
                made.append(OptionA.Block(inp, out, 2 if out != inp else 1))
                inp = out
            setattr(self, f"layer{stage}", nn.Sequential(*made))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


class Wide(nn.Module):
    """WideResNet with `block1.layer.0` and `convShortcut`."""

    class Block(nn.Module):
        def __init__(self, inp: int, out: int, stride: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = (
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, out, 3, stride, 1, bias=False),
            )
            self.bn2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
            self.equal = inp == out
            self.convShortcut = None if self.equal else nn.Conv2d(inp, out, 1, stride, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.bn1(x))
            x = x if self.equal else y
            z = self.conv2(F.relu(self.bn2(self.conv1(y))))
            return z + (x if self.convShortcut is None else self.convShortcut(x))

    class Stage(nn.Module):
        def __init__(self, count: int, inp: int, out: int, stride: int) -> None:
            super().__init__()
            self.layer = nn.Sequential(
                *(Wide.Block(out if n else inp, out, 1 if n else stride) for n in range(count))
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    def __init__(self, depth: int, widen: int, classes: int = 10) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Wide.Stage(count, 16, 16 * widen, 1)
        self.block2 = Wide.Stage(count, 16 * widen, 32 * widen, 2)
        self.block3 = Wide.Stage(count, 32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1))


class WideBiased(nn.Module):
    """WideResNet with biases, `layer1.0`, the stride in the second convolution."""

    class Block(nn.Module):
        def __init__(self, inp: int, out: int, stride: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inp), nn.Conv2d(inp, out, 3, padding=1)
            self.dropout = nn.Dropout(0.3)
            self.bn2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, stride, 1)
            self.shortcut = nn.Sequential()
            if stride != 1 or inp != out:
                self.shortcut = nn.Sequential(nn.Conv2d(inp, out, 1, stride))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv2(F.relu(self.bn2(self.dropout(self.conv1(F.relu(self.bn1(x)))))))
            return y + self.shortcut(x)

    def __init__(self, count: int, widen: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        inp = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for n in range(count):
                blocks.append(WideBiased.Block(inp, width * widen, 2 if stage > 1 and not n else 1))
                inp = width * widen
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(inp)
        self.linear = nn.Linear(inp, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1))


VGG = {
    11: [64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0],
    13: [64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0],
    16: [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0],
    19: [64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0],
}


class Row(nn.Module):
    """The usual VGG for CIFAR-10, and smaller ones with other activations and dropout."""

    def __init__(
        self, plan: list[int], *, norm: bool = True, divisor: int = 8, act: type = nn.ReLU,
        drop: bool = False, head: int = 1, classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in plan:
            if not width:
                layers += [nn.MaxPool2d(2), *([nn.Dropout(0.4)] if drop else [])]
                continue
            layers.append(nn.Conv2d(channels, width // divisor, 3, padding=1))
            layers += [*([nn.BatchNorm2d(width // divisor)] if norm else []), act()]
            channels = width // divisor
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * head, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Dense(nn.Module):
    class Layer(nn.Module):
        def __init__(self, inp: int, growth: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inp), nn.Conv2d(inp, 4 * growth, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(4 * growth)
            self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))), x], 1)

    class Down(nn.Module):
        def __init__(self, inp: int, out: int) -> None:
            super().__init__()
            self.bn, self.conv = nn.BatchNorm2d(inp), nn.Conv2d(inp, out, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)

    def __init__(self, counts: list[int], growth: int, classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for stage, count in enumerate(counts, start=1):
            layers = [Dense.Layer(channels + n * growth, growth) for n in range(count)]
            setattr(self, f"dense{stage}", nn.Sequential(*layers))
            channels += count * growth
            if stage < len(counts):
                setattr(self, f"trans{stage}", Dense.Down(channels, channels // 2))
                channels //= 2
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans3(
            self.dense3(self.trans2(self.dense2(self.trans1(self.dense1(self.conv1(x))))))
        )
        return self.linear(F.avg_pool2d(F.relu(self.bn(self.dense4(x))), 4).flatten(1))


class Mobile(nn.Module):
    class Block(nn.Module):
        def __init__(self, inp: int, out: int, expansion: int, stride: int) -> None:
            super().__init__()
            mid = expansion * inp
            self.stride = stride
            self.conv1, self.bn1 = nn.Conv2d(inp, mid, 1, bias=False), nn.BatchNorm2d(mid)
            self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
            self.bn2 = nn.BatchNorm2d(mid)
            self.conv3, self.bn3 = nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out)
            self.shortcut = nn.Sequential()
            if stride == 1 and inp != out:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inp, out, 1, bias=False), nn.BatchNorm2d(out)
                )

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
            y = self.bn3(self.conv3(y))
            return y + self.shortcut(x) if self.stride == 1 else y

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        layers, inp = [], 32
        for expansion, out, count, first in (
            (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for n in range(count):
                layers.append(Mobile.Block(inp, out, expansion, 1 if n else first))
                inp = out
        self.layers = nn.Sequential(*layers)
        self.conv2, self.bn2 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(self.layers(F.relu(self.bn1(self.conv1(x)))))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))
