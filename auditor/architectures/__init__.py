"""Which network do bare weights belong to? Named by the user, or told by names and shapes.

`named` understands `--arch`, `infer` does without it. `of_torchvision`, `of_timm` and `cifar` know
networks; what of them the weights decide is read from the weights (`shapes`), what they cannot tell
is a choice, spelled `resnet18,stem=maxpool`.
"""

from __future__ import annotations

from auditor.architectures.architecture import TORCHVISION_SIDE, Architecture
from auditor.architectures.named import resolve_architecture

__all__ = ["TORCHVISION_SIDE", "Architecture", "resolve_architecture"]
