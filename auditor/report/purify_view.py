"""What the reports of a purification show: its counts, put in order and joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from auditor.report.numbers import Rate, number, percent
from auditor.report.scan_view import ScreenedProbe, SeenResponse, bound_text, screened_probes
from auditor.results.facts import Counts, Verdict
from auditor.results.purify import (
    Confusion,
    Contender,
    Embedding,
    MaskLayer,
    MethodFacts,
    Outcome,
    PurifyResult,
    destinations,
)
from auditor.text import clean_text, counted, listed

Which = Literal["before", "after", "baseline"]

NO_PROOF = (
    "A found trigger that stopped working is not proof that the backdoor is gone: these are the "
    "triggers that were found; the attacker's own may differ."
)
NEVER_SEEN = (
    "Unseen judge triggers were kept from the purifier: it was neither told nor tuned by them."
)
FOUND_TOO = (
    "A judge trigger that the scan of the fit images found, too, is no independent judge: a method that is "
    "told what was found, was told of it."
)
NOTHING_FOUND = "No trigger that was tried works on this model, so the model was not touched."
NOT_TOLD = (
    "No trigger was shown on the fit images that could be unlearnt, so the model was not touched. Give "
    "more images with --clean; or let NFT run as published with --anyway."
)


MOST_TITLES, MOST_ABSENT = 4, 8
ALPHA = 0.025
"""Of one end of a 95% interval."""
MOST_EXACT = 20_000
"""Images of which the exact bound takes a second; of more, two bounds are subtracted, which is wider."""


def round_sentences(method: MethodFacts) -> list[str]:
    """What each round was told, and what a fresh search found in its result; plain text."""
    sentences = []
    for place, entry in enumerate(method.rounds, start=1):
        told = counted(entry.known, "trigger")
        if entry.found is None:
            sentences.append(
                f"Round {place} was told of {told}; no time was left to search its result."
            )
            continue
        if not entry.found:
            found = "found nothing more"
        else:
            found = f"found {len(entry.found)}: {listed(entry.found, MOST_TITLES, '; ')}"
            last = place == len(method.rounds)
            found += ". No round was left for them" if last else ". The next round was told of them"
        sentences.append(
            f"Round {place} was told of {told}; a fresh search of its result (seed {entry.seed}) "
            f"{found}."
        )
    return sentences


class Ending(StrEnum):
    """How a purification ended."""

    MET = "GOALS MET"
    MISSED = "GOALS MISSED"
    NOTHING = "NOTHING TO REMOVE"
    UNTOUCHED = "NOT PURIFIED"
    """A scan of the suspect does not end well, and shows nothing that could be unlearnt."""


ENDING_SYMBOLS: Mapping[Ending, str] = {
    Ending.MET: "✔",
    Ending.MISSED: "✖",
    Ending.NOTHING: "–",
    Ending.UNTOUCHED: "✖",
}
ENDING_TONES: Mapping[Ending, str] = {
    Ending.MET: "met",
    Ending.MISSED: "bad",
    Ending.NOTHING: "none",
    Ending.UNTOUCHED: "bad",
}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The same images under each model."""

    before: Rate
    after: Rate
    baseline: Rate | None
    """Plain fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class SeenOutcome:
    """An outcome with its rates."""

    number: int
    """Counted from 1, in the order of the result."""
    outcome: Outcome
    rates: Rates
    unstamped: Rates | None
    """How many of the same images go where the trigger sends them without it; None: the model was not
    touched, so that nobody counted."""

    @property
    def unseen(self) -> bool:
        """It is a judge trigger, and none that the scan found, too."""
        return self.outcome.origin == "judge" and not self.outcome.found_too

    @property
    def origin(self) -> str:
        """Where the trigger comes from, in words."""
        if self.outcome.origin == "found":
            return "found"
        return "judge, unseen" if self.unseen else "judge, also found"


@dataclass(frozen=True, kw_only=True)
class ProbeChange:
    """The strongest response of a probe, before and after."""

    probe: str
    title: str
    family: str
    triggers: int
    before: SeenResponse
    after: SeenResponse | None


@dataclass(frozen=True, kw_only=True)
class ScanLine:
    """One of the scans around a purification."""

    what: str
    images: str
    verdict: Verdict
    headline: str
    bound: str | None
    """See `scan_view.bound_text`."""


@dataclass(frozen=True, kw_only=True)
class MaskTotals:
    """All masks of the purified model."""

    layers: int
    channels: int
    near_zero: int
    near_one: int


@dataclass(frozen=True, kw_only=True)
class ComparedMethod:
    """One of several methods, on the judge images."""

    contender: Contender
    chosen: bool
    """It is the one that made the purified model."""
    accuracy: Rate
    rates: tuple[Rate, ...]
    """ASR of the trigger of each outcome that was measured."""
    highest: Rate | None
    trained: float | None
    """Share of the model's numbers that it trains."""
    retuned: Rate | None
    """ASR of the stress test's trigger after the re-tuning."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Images of one class that are predicted as another, before and after."""

    label: int
    predicted: int
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """One class in the t-SNE map: how many of its images are predicted as it."""

    label: int
    plain: int
    plain_before: int
    plain_after: int
    stamped: int
    stamped_before: int
    stamped_after: int


def ending(result: PurifyResult) -> Ending:
    """A missed goal comes first, also where the model was not touched."""
    if not result.goals.met:
        return Ending.MISSED
    if result.method is not None:
        return Ending.MET
    found = result.suspicion.verdict
    return Ending.NOTHING if found is Verdict.NO_EVIDENCE else Ending.UNTOUCHED


def is_touched(result: PurifyResult) -> bool:
    """Whether there is a purified model that differs from the suspect."""
    return result.method is not None and result.after is not None


def rates(counts: Counts, total: int) -> Rates:
    """The rates of counts over the same images."""
    baseline = None if counts.baseline is None else Rate(counts.baseline, total)
    return Rates(
        before=Rate(counts.before, total), after=Rate(counts.after, total), baseline=baseline
    )


def accuracy(result: PurifyResult) -> Rates:
    """Clean accuracy on the judge images, or agreement with the suspect."""
    return rates(result.accuracy, result.judge.images)


def accuracy_word(result: PurifyResult) -> str:
    """What the accuracy is called."""
    return "accuracy" if result.labelled else "agreement with the suspect"


def outcomes(result: PurifyResult) -> list[SeenOutcome]:
    """Every outcome that was measured with its rates, in the order of the result."""
    return [
        SeenOutcome(
            number=index + 1,
            outcome=outcome,
            rates=rates(outcome.hits, outcome.eligible),
            unstamped=_unstamped(outcome, result.confusion),
        )
        for index, outcome in enumerate(result.outcomes)
        if outcome.eligible
    ]


def _unstamped(outcome: Outcome, confusion: Confusion | None) -> Rates | None:
    if confusion is None:
        return None
    wanted = destinations(outcome, len(confusion.before))
    return rates(confusion.sent(wanted), outcome.eligible)


def highest(seen: Sequence[SeenOutcome], which: Which) -> tuple[Rate, SeenOutcome] | None:
    """The highest ASR under one model, and the trigger that has it."""
    measured = [
        (rate, entry)
        for entry in seen
        if (rate := getattr(entry.rates, which)) is not None and rate.total > 0
    ]
    return max(measured, key=lambda pair: (pair[0].share, -pair[1].number), default=None)


def headline(result: PurifyResult) -> str:
    """What came of it, in one or two sentences with their numbers."""
    kind = ending(result)
    if kind is Ending.MISSED:
        said = " ".join(result.goals.missed[:4])
        return said if result.method is not None else f"{said} The model was not touched."
    if kind is Ending.NOTHING:
        return NOTHING_FOUND
    if kind is Ending.UNTOUCHED:
        scanned = result.suspicion
        return f"A scan of the suspect ends in {scanned.verdict}: {scanned.headline} {NOT_TOLD}"
    seen, right, goals = outcomes(result), accuracy(result), result.goals
    before, after = highest(seen, "before"), highest(seen, "after")
    known = (
        f"The highest ASR went from {percent(before[0].share)} to {percent(after[0].share)} "
        f"(goal: {asr_goal(result)}), {accuracy_word(result)}"
        if before is not None and after is not None
        else accuracy_word(result).capitalize()
    )
    return (
        f"{known} from {percent(right.before.share)} to {percent(right.after.share)} "
        f"(goal: a loss of at most {points(goals.max_acc_drop)})."
    )


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{share * 100:.1f} points"


def difference(before: Rate, after: Rate) -> str:
    """How a share of the same images changed, as "−1.0 points"; rounded as the goals round it."""
    # of whole numbers, so that 77 - 80 of 80 is the -3.75 that 3 of 80 are
    change = round((after.hits - before.hits) / max(1, after.total) * 100, 1)
    sign = "−" if change < 0 else "+" if change > 0 else "±"
    return f"{sign}{abs(change):.1f} points"


def cautions(result: PurifyResult) -> list[str]:
    """What has to stand beside the numbers of a purified model."""
    if not is_touched(result):
        return []
    weak = [*_unjudged(result), *_came_back(result), *unproven(result)]
    if not result.outcomes:
        return weak
    judges = [entry.unseen for entry in outcomes(result) if entry.outcome.origin == "judge"]
    found = [NO_PROOF, *([NEVER_SEEN] if any(judges) else [])]
    found += [] if all(judges) else [FOUND_TOO]
    again = None if result.after is None else result.after.judgement
    if again is not None and again.verdict is not Verdict.NO_EVIDENCE:
        found.append(f"The scan of the purified model ends in {again.verdict}: {again.headline}")
    return found + weak


def _unjudged(result: PurifyResult) -> list[str]:
    """Of classes that no judge image is of."""
    absent = [k for k, count in enumerate(result.judge.members) if not count]
    if not absent:
        return []
    names = [clean_text(result.model.class_names[k], limit=40) for k in absent]
    named = [
        f"class {k}" if name == str(k) else f'"{name}"'
        for k, name in zip(absent, names, strict=True)
    ]
    return [
        f"No judge image is {'of' if result.labelled else 'taken for'} {listed(named, MOST_ABSENT)}: "
        f"what became of {len(absent)} of {result.model.classes} classes is not known."
    ]


def asr_goal(result: PurifyResult) -> str:
    """The goal for the ASR in words."""
    goal = result.goals.max_asr
    anyway = any(outcome.raises_goal(goal) for outcome in result.outcomes)
    beside = ", beside what goes there without a trigger" if anyway else ""
    return f"at most {percent(goal)}{beside}"


def misses_asr(result: PurifyResult) -> bool:
    """Whether a trigger misses it."""
    return any(outcome.is_beyond(result.goals.max_asr) for outcome in result.outcomes)


def _came_back(result: PurifyResult) -> list[str]:
    """Of a trigger that a few steps of training taught the purified model again."""
    stress = result.stress
    row = None if stress is None else next((r for r in stress.rows if r.model == "purified"), None)
    if stress is None or row is None:
        return []
    most = result.goals.max_asr * stress.eligible
    if row.hits_before > most or row.hits_after <= most:
        return []
    return [
        f"Re-tuned on {counted(stress.poisoned, 'stamped image')}, the purified model obeys {stress.probe} "
        f"on {row.hits_after} of {stress.eligible} images again: the backdoor may be hidden rather than "
        "gone, or be learnt anew."
    ]


def unproven(result: PurifyResult) -> list[str]:
    """Of goals that are met on the judge images, what more of them might show: ends of 95% intervals."""
    goals, table = result.goals, result.confusion
    if not goals.met:
        return []
    said = []
    after = [entry.rates.after for entry in outcomes(result)]
    least = max(after, key=lambda rate: rate.high, default=None)
    if least is not None and least.high > goals.max_asr:
        said.append(
            f"{counted(least.hits, 'hit')} of {least.total} leave room for an ASR of {percent(least.high)} "
            f"(goal: {asr_goal(result)})"
        )
    if table is not None and table.lost is not None and table.gained is not None:
        most = _lost_at_most(table.lost, table.gained, result.judge.images)
        if most > goals.max_acc_drop:
            of = counted(result.judge.images, "image")
            said.append(
                f"{table.lost} lost and {table.gained} gained of {of} leave room for a loss of "
                f"{100 * most:.2f} points of {accuracy_word(result)} (goal: at most "
                f"{points(goals.max_acc_drop)})"
            )
    if not said:
        return []
    return [
        f"The goals are met as counted, which is no proof: {'; '.join(said)}, at the ends of 95% intervals. "
        "More images to judge by (--judge, --holdout) would tell."
    ]


def _lost_at_most(lost: int, gained: int, total: int) -> float:
    """Upper end of the 95% interval of the share that is lost, less the share that is gained."""
    from auditor import statistics  # here, as it brings scipy

    if total <= MOST_EXACT:
        return -statistics.difference_bound(gained, lost, total, ALPHA)
    most = statistics.upper_bound(lost, total, ALPHA / 2)
    return most - statistics.lower_bound(gained, total, ALPHA / 2)


def written_sentence(result: PurifyResult) -> str:
    """What was written, or plainly that nothing was, and why."""
    written = result.written
    if written is not None:
        anyway = "" if result.goals.met else "It was written although a goal was missed. "
        return (
            f"{anyway}It was read back and compared with the model that was judged: the largest "
            f"difference of an output on {written.compared} images is "
            f"{number(written.largest_difference)}."
        )
    if not is_touched(result):
        return "No file was written, because nothing was changed."
    if not result.goals.met:
        return "No file was written, because a goal was missed."
    return "No file was written, although the goals are met."


def probe_changes(result: PurifyResult) -> list[ProbeChange]:
    """Each probe of the scan before beside the same probe of the scan after, strongest first."""
    later = {
        (group.family, group.probe): group
        for group in ([] if result.after is None else screened_probes(result.after))
    }

    def change(group: ScreenedProbe) -> ProbeChange:
        other = later.get((group.family, group.probe))
        return ProbeChange(
            probe=group.probe,
            title=group.title,
            family=group.family,
            triggers=len(group.rows),
            before=group.rows[0],
            after=None if other is None else other.rows[0],
        )

    found = [change(group) for group in screened_probes(result.before)]
    return sorted(found, key=lambda row: (-_strongest_share(row), row.probe, row.family))


def _strongest_share(row: ProbeChange) -> float:
    return max(row.before.asr.share, row.after.asr.share if row.after else 0.0)


def scan_lines(result: PurifyResult) -> list[ScanLine]:
    """The scans before the purification, and the one after it."""
    own = any(facts.family == "clean" for facts in result.evidence.images)
    fit = f"{result.fit.images} fit images" if own else "made images"
    scans = [
        ("the suspect", fit, result.evidence),
        ("the suspect", f"{result.judge.images} judge images", result.before),
        ("the purified model", f"{result.judge.images} judge images", result.after),
    ]
    return [
        ScanLine(
            what=what,
            images=images,
            verdict=scan.judgement.verdict,
            headline=scan.judgement.headline,
            bound=bound_text(scan),
        )
        for what, images, scan in scans
        if scan is not None
    ]


def mask_totals(layers: Sequence[MaskLayer]) -> MaskTotals:
    """Sums over the layers."""
    return MaskTotals(
        layers=len(layers),
        channels=sum(layer.channels for layer in layers),
        near_zero=sum(layer.near_zero for layer in layers),
        near_one=sum(layer.near_one for layer in layers),
    )


def most_changed(layers: Sequence[MaskLayer], limit: int) -> list[tuple[int, MaskLayer]]:
    """The layers whose masks are furthest from 1 on average, in the order of the network."""
    order = sorted(range(len(layers)), key=lambda index: (layers[index].mean, index))
    return [(index, layers[index]) for index in sorted(order[:limit])]


def moved_most(result: PurifyResult) -> list[Moved]:
    """Confusions whose counts changed, the largest change first."""
    if result.confusion is None:
        return []
    before, after = result.confusion.before, result.confusion.after
    changes = (
        Moved(label=row, predicted=column, before=count, after=after[row][column])
        for row, counts in enumerate(before)
        for column, count in enumerate(counts)
        if row != column and count != after[row][column]
    )
    return sorted(changes, key=lambda m: (-abs(m.after - m.before), m.label, m.predicted))


def map_rows(embedding: Embedding) -> list[MapRow]:
    """The map in numbers, a class a row."""

    def row(label: int) -> MapRow:
        own = [point for point in embedding.points if point.label == label]
        plain = [point for point in own if not point.stamped]
        stamped = [point for point in own if point.stamped]
        return MapRow(
            label=label,
            plain=len(plain),
            plain_before=sum(point.predicted_before == label for point in plain),
            plain_after=sum(point.predicted_after == label for point in plain),
            stamped=len(stamped),
            stamped_before=sum(point.predicted_before == label for point in stamped),
            stamped_after=sum(point.predicted_after == label for point in stamped),
        )

    return [row(label) for label in sorted({point.label for point in embedding.points})]


def compared_methods(result: PurifyResult) -> list[ComparedMethod]:
    """The methods that were compared, best first; empty where one was asked for."""
    numbers = result.model.parameters
    rows = []
    for place, contender in enumerate(result.contenders):
        rates = tuple(
            Rate(hits, outcome.eligible)
            for hits, outcome in zip(contender.hits, result.outcomes, strict=True)
            if outcome.eligible
        )
        retuned = None
        if result.stress is not None and contender.retuned is not None:
            retuned = Rate(contender.retuned, result.stress.eligible)
        rows.append(
            ComparedMethod(
                contender=contender,
                chosen=place == 0,
                accuracy=Rate(contender.correct, result.judge.images),
                rates=rates,
                highest=max(rates, key=lambda rate: rate.share, default=None),
                trained=contender.trained / numbers if numbers else None,
                retuned=retuned,
            )
        )
    return rows


def comparison_sentence(result: PurifyResult) -> str:
    """How the best of several methods was found; plain text."""
    met = sum(not contender.missed for contender in result.contenders)
    ordered = "those that do" if met else "them"
    if not any(outcome.origin == "found" for outcome in result.outcomes):
        stay = "those that do stay" if met else "they stay"
        order = f"No trigger is known, so {stay} in the order in which they were asked for."
    elif result.kept_back:
        order = (
            f"Among {ordered}, the order is that of {result.kept_back} fit images which no method "
            "was fitted on."
        )
    else:
        order = (
            f"Among {ordered}, the order is that of the fit images, too few to keep some back, so "
            "that it favours what fits them closely."
        )
    return (
        f"{len(result.contenders)} methods were compared, and {met or 'none'} of them "
        f"{'meet' if met > 1 else 'meets'} the goals on the judge images. {order} Judge triggers do "
        "not choose, and only the best one was scanned again. With many methods, one that meets a "
        "goal by a narrow margin may do so by chance."
    )
