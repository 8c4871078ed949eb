"""Which networks do weights fit, told by their names and shapes?

Nothing of the file is executed and nothing of its size is allocated: networks are built without
numbers and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auditor.architectures import cifar, of_timm, of_torchvision
from auditor.architectures.architecture import Architecture, State
from auditor.architectures.of_torchvision import Hollow
from auditor.architectures.shapes import COUNTER, Misfit, Shapes, class_count, is_counter, stripped
from auditor.errors import AuditorError
from auditor.text import clean_text

MAX_DIFFERENCES = 3
HINTS = of_timm.HINTS
NOT_BUILT = (
    ArithmeticError,
    AuditorError,
    LookupError,
    Misfit,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What shapes that belong to no network can provoke while one is built from them."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A network, and how well the weights fit it."""

    architecture: Architecture
    title: str
    """What it is, for people."""
    score: float
    """Share of names that both have, times the share of equal shapes among these; 1 is all."""
    exact: bool
    """The weights fit it, all of them, and it gives one score a class."""
    differences: tuple[str, ...]
    """What does not fit, the first of it; fit to be shown."""


def candidates(
    state: Mapping[str, Tensor], hints: Mapping[str, str | int] | None = None
) -> list[Match]:
    """Networks that these weights may belong to, best first.

    Where one of torchvision fits, the zoo is not asked; where any fits, near misses are left out.

    Args:
        state: Name -> weight; on the meta device if need be.
        hints: What the checkpoint says beside the weights (`model_name`, `arch`).

    Raises:
        UnsuitableModel: No classifier has so many classes.
    """
    hints = hints or {}
    state = stripped(state)
    try:
        shapes = Shapes(state)
    except Misfit:
        return []
    class_count(state)
    found = [_match(architecture, state, shapes) for architecture in of_timm.recognised(hints)]
    for known in (of_torchvision.recognised, cifar.recognised):
        if not any(match.exact for match in found):
            found += _best(known(shapes, state), state, shapes)
    said = _plain(" ".join(str(hints[key]) for key in HINTS if key in hints))
    exact = [match for match in found if match.exact]
    if said:  # a stable sort: what the checkpoint names comes first
        exact.sort(key=lambda match: _plain(_own(match)) not in said)
    return exact or sorted(found, key=lambda match: -match.score)


def _best(architectures: list[Architecture], state: State, shapes: Shapes) -> list[Match]:
    """Matches of one source; of a network that does not fit, its other choices are not tried."""
    found: dict[str, list[Match]] = {}
    for architecture in architectures:
        own = architecture.name.partition(",")[0]
        if own not in found:
            if any(match.exact for matches in found.values() for match in matches):
                break
            found[own] = []
        elif not found[own][0].exact:
            continue
        found[own].append(_match(architecture, state, shapes))
    return [match for matches in found.values() for match in matches]


def _match(architecture: Architecture, state: State, shapes: Shapes) -> Match:
    try:
        with Hollow():
            network = architecture.build(state)
    except NOT_BUILT as error:
        return _missed(architecture, clean_text(str(error), limit=160))
    own = {k: tuple(t.shape) for k, t in network.state_dict().items() if not k.endswith(COUNTER)}
    sizes = shapes.sizes
    theirs = {k: size for k, size in sizes.items() if not is_counter(k, size, sizes)}
    shared = own.keys() & theirs.keys()
    equal = [key for key in shared if own[key] == theirs[key]]
    score = len(equal) / max(len(own.keys() | theirs.keys()), 1)
    differences = _differences(own, theirs)
    exact = score == 1 and not (refusal := _refusal(network, architecture, state))
    if score == 1 and not exact:
        differences = (refusal,)
    return Match(
        architecture=architecture,
        title=_title(architecture, shapes),
        score=score if exact else min(score, 0.999),
        exact=exact,
        differences=differences,
    )


def _missed(architecture: Architecture, why: str) -> Match:
    return Match(
        architecture=architecture,
        title=architecture.name,
        score=0.0,
        exact=False,
        differences=(why,),
    )


def _differences(
    own: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """The first names and shapes that differ, in the order of the network, then of the file."""
    found = []
    for key, size in own.items():
        if key not in theirs:
            found.append(f"{clean_text(key, limit=80)} is missing")
        elif theirs[key] != size:
            shown = " and not ".join("×".join(map(str, s)) for s in (theirs[key], size))
            found.append(f"{clean_text(key, limit=80)} is {shown}")
    found += [f"{clean_text(key, limit=80)} is too much" for key in theirs if key not in own]
    return tuple(found[:MAX_DIFFERENCES])


def _refusal(network: nn.Module, architecture: Architecture, state: State) -> str:
    """Why the network gives no scores for images of its size; empty where it does."""
    if not architecture.name.startswith(cifar.PREFIX):
        return ""
    sizes = architecture.sizes(state)
    side = sizes.side or cifar.SIDE
    images = torch.empty(2, sizes.fixed[0] or 3, side, side, device="meta")
    try:
        with torch.no_grad():
            scores = network.eval().to("meta")(images)
    except NOT_BUILT as error:
        return f"it does not run on {side}×{side} images ({clean_text(str(error), limit=120)})"
    return "" if scores.ndim == 2 and scores.shape[1] else "it gives no scores of classes"


def _title(architecture: Architecture, shapes: Shapes) -> str:
    name = architecture.name
    if name.startswith(cifar.PREFIX):
        return cifar.title(architecture, shapes)
    own, _, choice = name.partition(",")
    said = f" ({choice})" if choice else ""
    where = "" if name.startswith(of_timm.PREFIX) else " of torchvision"
    return f"{own.removeprefix(of_timm.PREFIX)}{where}{said}"


def _own(match: Match) -> str:
    return match.architecture.name.rpartition(":")[2].partition(",")[0]


def _plain(text: str) -> str:
    """Letters and digits, small."""
    return "".join(character for character in text.lower() if character.isalnum())
