"""What the page and the Markdown of a scan show: its counts, put in order and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from auditor.report.numbers import Rate, percent
from auditor.report.pictures import PICTURE_CHARACTERS, Image, read_image
from auditor.results.facts import ImageFacts, Verdict
from auditor.results.scan import Confirmation, Exhibit, Response, ScanResult


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A confirmation with its judgement."""

    number: int
    """Counted from 1, in the order of the result."""
    found: Confirmation
    verdict: Verdict | None
    """None where the reason is given with another confirmation (of the same trigger)."""
    asr: Rate
    clean: Rate
    controls: tuple[tuple[str, Rate], ...]
    surer: Rate | None
    """See `Confirmation.surer`."""
    further: Rate | None
    """Images that it drives further than the best rival; None where there is none."""

    @property
    def worst(self) -> Rate | None:
        """The control that hits most."""
        return max((rate for _, rate in self.controls), key=lambda rate: rate.hits, default=None)


@dataclass(frozen=True, kw_only=True)
class SeenResponse:
    """A response, with the class that it reaches most."""

    response: Response
    target: int | None
    asr: Rate


@dataclass(frozen=True, kw_only=True)
class ScreenedProbe:
    """The responses of one probe on one family of images, best first."""

    probe: str
    title: str
    family: str
    rows: tuple[SeenResponse, ...]


@dataclass(frozen=True, kw_only=True)
class Top:
    """The highest ASR of the scan."""

    asr: Rate
    target: int | None
    where: str
    """"confirmed" or "screened"."""
    family: str
    clean: Rate | None = None
    control: Rate | None = None
    held_out: bool = False
    searched: bool = False
    """A search made the trigger."""
    scope: str = "all-to-one"


def checked_confirmations(result: ScanResult) -> list[Checked]:
    """Confirmations in the order of the reasons that cite them, then by strength."""
    cited: dict[int, tuple[int, Verdict]] = {}
    for place, reason in enumerate(result.judgement.reasons):
        if reason.confirmation is not None:
            cited.setdefault(reason.confirmation, (place, reason.verdict))
    rows = [
        Checked(
            number=index + 1,
            found=c,
            verdict=cited[index][1] if index in cited else None,
            asr=Rate(c.hits, c.eligible),
            clean=Rate(c.clean_hits, c.eligible),
            controls=tuple((k.trigger, Rate(k.hits, c.eligible)) for k in c.controls),
            surer=None if c.surer is None else Rate(c.surer, c.eligible),
            further=Rate(min(r.weaker for r in c.rivals), c.eligible) if c.rivals else None,
        )
        for index, c in enumerate(result.confirmations)
    ]
    last = len(result.judgement.reasons)
    return sorted(
        rows, key=lambda row: (cited.get(row.number - 1, (last,))[0], -row.asr.share, row.number)
    )


def screened_probes(result: ScanResult) -> list[ScreenedProbe]:
    """Responses by family and probe; the strongest probe first within its family."""
    facts = {entry.family: entry for entry in result.images}
    titles = {probe.id: probe.title for probe in result.probes}
    declared = [c for c in result.confirmations if not c.searched]
    titles |= {c.probe: c.title for c in declared if c.probe not in titles}
    groups: dict[tuple[str, str], list[SeenResponse]] = {}
    for response in result.responses:
        seen = _strongest(response, facts[response.family])
        groups.setdefault((response.family, response.probe), []).append(seen)
    place = {family: index for index, family in enumerate(facts)}
    found = [
        ScreenedProbe(
            probe=probe,
            title=titles.get(probe, ""),
            family=family,
            rows=tuple(sorted(rows, key=lambda row: (-row.asr.share, row.response.trigger))),
        )
        for (family, probe), rows in groups.items()
    ]
    return sorted(found, key=lambda g: (place[g.family], -g.rows[0].asr.share, g.probe))


def _strongest(response: Response, facts: ImageFacts) -> SeenResponse:
    rates = [
        (Rate(hits, response.images - facts.screen_members[target]), target)
        for target, hits in sorted(response.hits.items())
        if response.images > facts.screen_members[target]
    ]
    if not rates:
        fewest = response.images - max(facts.screen_members, default=0)
        return SeenResponse(response=response, target=None, asr=Rate(0, max(0, fewest)))
    asr, target = max(rates, key=lambda entry: (entry[0].share, -entry[1]))
    return SeenResponse(response=response, target=target, asr=asr)


def highest_response(checked: Sequence[Checked], screened: Sequence[ScreenedProbe]) -> Top | None:
    """The judged confirmation that comes first, else the highest response of the screen.

    Any network gives way to a search, so a searched trigger is the highest only where it is evidence.
    """
    worth = [
        row
        for row in checked
        if not row.found.searched or (row.verdict is not None and row.verdict.is_alarm)
    ]
    if worth:
        row = worth[0]
        return Top(
            asr=row.asr,
            target=row.found.target,
            where="confirmed",
            family=row.found.family,
            clean=row.clean,
            control=row.worst,
            held_out=row.found.held_out,
            searched=row.found.searched,
            scope=row.found.scope,
        )
    seen = [(group, group.rows[0]) for group in screened if group.rows[0].asr.total > 0]
    if not seen:
        return None
    group, best = max(seen, key=lambda entry: entry[1].asr.share)
    return Top(asr=best.asr, target=best.target, where="screened", family=group.family)


def bound_text(result: ScanResult) -> str | None:
    """What is known of the triggers that were not confirmed one by one, in a sentence."""
    bound = result.judgement.nothing_above
    if bound is None:
        return None
    return (
        "The triggers of the battery that did not stand out on the screening images have an all-to-one ASR "
        f"of {percent(bound)} at most (95%, all of them and all classes at once)."
    )


def power_text(result: ScanResult) -> str | None:
    """Which triggers the scan would have found, in a sentence; None where nothing can be said."""
    judgement = result.judgement
    if judgement.power is None:
        return None
    towards = "any class"
    if judgement.power_classes < result.model.classes:
        towards = (
            f"{judgement.power_classes} of {result.model.classes} classes (too few images are not of the "
            "others)"
        )
    return (
        f"A small or faint trigger of the battery with a true ASR of {judgement.power:.0%} or more, towards "
        f"{towards}, would have been called {judgement.power_verdict} with probability 95%, if neither "
        "unstamped images nor its controls went there, and its class stood for no mark."
    )


def clean_accuracy(result: ScanResult) -> Rate | None:
    """On the user's images, where they have labels."""
    for facts in result.images:
        if facts.family == "clean" and facts.correct is not None:
            return Rate(facts.correct, facts.screen + facts.confirm)
    return None


def count_triggers(result: ScanResult) -> tuple[int, int]:
    """Declared triggers that ran, and that were to run."""
    ran = {(response.probe, response.trigger) for response in result.responses}
    declared = {probe.id for probe in result.probes}
    extra = sum(probe not in declared for probe, _ in ran)
    planned = sum(probe.triggers for probe in result.probes) + extra
    return len(ran), max(planned, len(ran))


def shown_exhibits(result: ScanResult) -> tuple[list[tuple[Exhibit, Image | None, list[Any]]], int]:
    """Exhibits with their pictures, as many as the page may carry, and how many are left out."""
    room = PICTURE_CHARACTERS
    pairs: dict[tuple[int, int], tuple[Image, Image]] = {}
    differences: dict[int, Image] = {}
    left_out = 0
    order = sorted(
        (place, index)
        for index, e in enumerate(result.exhibits)
        for place in range(len(e.pictures))
    )
    for index, exhibit in enumerate(result.exhibits):
        image = read_image(exhibit.difference_png) if len(exhibit.difference_png) <= room else None
        if image is not None:
            differences[index] = image
            room -= len(exhibit.difference_png)
    for place, index in order:
        picture = result.exhibits[index].pictures[place]
        size = len(picture.before_png) + len(picture.after_png)
        before, after = (
            (read_image(picture.before_png), read_image(picture.after_png))
            if size <= room
            else (None, None)
        )
        if before is None or after is None:
            left_out += 1
            continue
        pairs[index, place] = (before, after)
        room -= size
    shown = [
        (
            exhibit,
            differences.get(index),
            [(p, *pairs[index, n]) for n, p in enumerate(exhibit.pictures) if (index, n) in pairs],
        )
        for index, exhibit in enumerate(result.exhibits)
    ]
    return shown, left_out
