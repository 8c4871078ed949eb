"""What a scan stamps: the selected probes, and the trigger that a file may hold itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from auditor.measure import Family, Stamped, inapplicable
from auditor.models.base import ModelHandle
from auditor.probes import Probe
from auditor.results.facts import Caveat, InputSpec, Skipped
from auditor.triggers.base import Trigger
from auditor.triggers.geometry import span
from auditor.triggers.patch import Patch, RandomPatch, Square
from auditor.triggers.warp import GridWarp

STRUCTURELESS = ("leaves", "noise")
"""Families of made images on which a trigger that needs structure (a warp) does not show."""

SCALED = "scaled-triggers"
EXAMPLE = 3
"""Side of the square that the caveat tells of."""


def stamped_triggers(model: ModelHandle, probes: Sequence[Probe]) -> list[Stamped]:
    """Everything that a scan stamps: what the file itself holds, then the probes, quick ones first."""
    return [
        *_checkpoint_grids(model),
        *(
            Stamped(probe=probe.id, title=probe.title, trigger=trigger)
            for probe in sorted(probes, key=lambda p: ("quick", "standard", "deep").index(p.tier))
            for trigger in probe.triggers
        ),
    ]


def _checkpoint_grids(model: ModelHandle) -> Iterator[Stamped]:
    """WaNet checkpoints hold the grid of their own trigger, though not its strength."""
    for strength in (0.5, 1.0):
        grid = GridWarp.from_checkpoint(model.extras, strength=strength)
        if grid is not None:
            title = f"The warping grid of the checkpoint itself, strength {strength:g}"
            yield Stamped(probe="warp.checkpoint", title=title, trigger=grid)


def scaled(triggers: Iterable[Trigger], spec: InputSpec) -> list[Caveat]:
    """A word on triggers that are stamped larger or smaller than their names and numbers say."""
    drawn_for = Counter(
        trigger.native
        for trigger in triggers
        if isinstance(trigger, Patch | Square | RandomPatch) and trigger.resize == "scale"
    )
    side = max(drawn_for, key=lambda side: drawn_for[side], default=0)
    if not side or (spec.height, spec.width) == (side, side):
        return []
    height, width = (
        span(0, EXAMPLE, native=side, size=length, resize="scale")[1]
        for length in (spec.height, spec.width)
    )
    return [
        Caveat(
            id=SCALED,
            text=f"Names and numbers of most patches are for images of {side}×{side} pixels, as published. "
            f"They are scaled to this input: a square of {EXAMPLE}×{EXAMPLE} pixels covers "
            f"{height}×{width} of its {spec.height}×{spec.width}.",
        )
    ]


def applicable(
    entries: Sequence[Stamped], families: Sequence[Family]
) -> tuple[list[Stamped], list[Skipped]]:
    """The triggers that can be stamped on such images, and why the others cannot.

    Args:
        entries: All of them.
        families: The images, all of one size; without any, nothing is stamped.
    """
    if not families:
        return [], []
    whys = [inapplicable(entry.trigger, families[0].screen.images) for entry in entries]
    every = Counter(entry.probe for entry in entries)
    left = Counter((entry.probe, why) for entry, why in zip(entries, whys, strict=True) if why)
    skipped = []
    for (probe, why), count in left.items():
        some = "" if count == every[probe] else f"{count} of {every[probe]} triggers of "
        skipped.append(Skipped(what=f"{some}{probe}", reason=f"not applicable: {why}"))
    return [entry for entry, why in zip(entries, whys, strict=True) if not why], skipped


def visible(entries: Sequence[Stamped], family: Family) -> tuple[list[Stamped], list[Skipped]]:
    """The triggers that show on images of a family, and a word on the others: a warp does not on noise."""
    if family.name not in STRUCTURELESS:
        return list(entries), []
    seen = [entry for entry in entries if not entry.trigger.needs_structure]
    if len(seen) == len(entries):
        return seen, []
    what = f"{len(entries) - len(seen)} triggers on {family.name}"
    return seen, [Skipped(what=what, reason="they need images with structure")]


def unfinished(entries: Sequence[Stamped], done: int, family: Family) -> list[Skipped]:
    """A word on the triggers that the time budget left no time for: all but the first `done`."""
    left = Counter(entry.probe for entry in entries[done:])
    on = "" if family.name == "clean" else f" on {family.name}"
    return [
        Skipped(
            what=f"{probe}{on}",
            reason=f"time budget ({count} triggers not tried)",
            untried=count,
        )
        for probe, count in left.items()
    ]
