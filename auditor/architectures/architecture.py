"""A way to make the network that weights belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from auditor.errors import UsageError
from auditor.registry import nearest
from auditor.text import clean_text

TORCHVISION_SIDE = 224

State = Mapping[str, Tensor]
"""Name -> tensor, without what wrappers put before the names."""
Choice = Mapping[str, str]
"""What weights do not tell: name -> value, such as `stem` -> `maxpool`."""


class Sizes(NamedTuple):
    """Of the images that a network takes."""

    fixed: tuple[int | None, int | None, int | None] = (None, None, None)
    """Channels, height and width, as far as no others will do."""
    side: int | None = None
    """Side of the square images that it is made for."""


def of_any_size(state: State) -> Sizes:
    """Nothing is known."""
    del state
    return Sizes()


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A way to make the network."""

    name: str
    """As `--arch` takes it."""
    build: Callable[[State], nn.Module]
    """Weights -> the network with fresh ones. Only their names and shapes are looked at: they say
    how many classes there are and whatever else varies."""
    sizes: Callable[[State], Sizes] = of_any_size
    """Weights -> sizes of the images that the network takes."""


def spelled(name: str, choice: Choice) -> str:
    """`resnet18,stem=maxpool`, as `--arch` takes it."""
    return ",".join([name, *(f"{key}={value}" for key, value in choice.items())])


def parsed(text: str, choices: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The choices of `resnet18,stem=maxpool`.

    Args:
        text: All of it.
        choices: What can be chosen, and the values.

    Raises:
        UsageError: No such choice, or no such value of it.
    """
    found: dict[str, str] = {}
    for part in text.split(",")[1:]:
        key, _, value = part.partition("=")
        if key not in choices:
            known = ", ".join(choices) or "none"
            raise UsageError(
                f'--arch {clean_text(text)}: it has no choice "{clean_text(key)}"'
                f"{nearest(key, choices)} Its choices: {known}."
            )
        if value not in choices[key]:
            raise UsageError(
                f"--arch {clean_text(text)}: {key} is one of {', '.join(choices[key])}"
                f"{nearest(value, choices[key])}"
            )
        found[key] = value
    return found
