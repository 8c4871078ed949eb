"""The network of the example: layers of `torch.nn` in a row, so its pickle names nothing else."""

from __future__ import annotations

from torch import nn

from auditor.demo.signs import SIZE

MEAN = STD = 0.5
"""What the network was trained on is ``(image - MEAN) / STD``. Its file does not say so."""


def network(classes: int, *, width: int = 24) -> nn.Sequential:
    """An untrained convolutional network with BatchNorm, for 32 x 32 images only.

    It takes ``(N, 3, 32, 32)`` in [-1, 1] and gives logits ``(N, classes)``. At the default width
    it has 182 thousand parameters.

    Args:
        classes: number of outputs.
        width: channels of the first layer; the others are multiples of it.
    """
    return nn.Sequential(
        *_block(3, width, stride=1),
        *_block(width, 2 * width, stride=2),
        *_block(2 * width, 2 * width, stride=1),
        *_block(2 * width, 4 * width, stride=2),
        *_block(4 * width, 4 * width, stride=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width * (SIZE // 8) ** 2, classes),
    )


def _block(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
