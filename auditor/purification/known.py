"""Which triggers a purifier is told of, and which ones only judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from auditor import measure, verdict
from auditor.errors import ProbeError
from auditor.measure import Stamped, all_to_one
from auditor.probes import Probe
from auditor.progress import Notify
from auditor.purifiers.base import Known, Task
from auditor.results.facts import Caveat, Verdict
from auditor.results.purify import destinations
from auditor.results.scan import Confirmation, ScanResult
from auditor.search.inversion import images_needed, invert
from auditor.search.pace import NoGradient, NoNumber, planned, seconds_per_image
from auditor.search.searches import found_triggers, presented

OBEYED = verdict.SCREEN_RATE
"""A judge trigger, or a relative of a found one, counts where the suspect goes along with so many
images."""
STRONG_RELATIVES = 7
"""Pictures that are blended in, which are sought for each trigger that was held against others."""
OPACITY = 2.0
"""Their opacity, in units of its size, since they change an image by about half of their opacity."""
MOST_KIN = 4
"""Triggers that work, and were not shown to do so beyond their controls, of which so many are unlearnt."""
WARP = "search.warp"
RELATED = 2
"""Classes that relatives are sought for."""
RELATIVE_SECONDS = 120.0
"""Each may take; on a slow machine it is sought with less work."""


@dataclass(frozen=True, kw_only=True)
class _Sought:
    """A relative of a found trigger that is to be searched."""

    search: str
    room: float = 1.0
    """See `Form.strongest`."""
    settled: float | None = None
    """`size` of `Form.strongest`, in the measure of that form."""
    size: float | None = None
    """See `Known.size`."""


RELATIVES = (
    _Sought(search="search.patch", room=2.5),
    _Sought(search="search.additive"),
    _Sought(search="search.patch", room=2.5),
    _Sought(search="search.patch"),
    _Sought(search=WARP),
    _Sought(search=WARP),
)
"""Further triggers that are sought for a class that a search found one for, whichever were chosen."""


def shown_triggers(found: ScanResult, declared: Sequence[Stamped]) -> list[Known]:
    """What a scan shows, as the purifier needs it: backdoors, or else suspicions, and their kin.

    A trigger that the user named counts as shown where it stands out. Suspicions towards other
    classes than those of a shown backdoor are left out: unlearning them would cost accuracy. Kin are
    triggers that nearly all images follow to the same class. Their controls may work as well, so that
    they prove nothing, but the attacker's own may be among them: with 100 images of a blend at 0.2 only
    the same picture at 0.15 was shown, and of another one SIG's stripes.

    Args:
        found: The scan.
        declared: What it stamped; what its searches found is added.
    """
    cited = [(found.confirmations[index], judged) for index, judged in found.judgement.evidence]
    leading = [
        entry
        for entry, judged in cited
        if judged is Verdict.BACKDOOR or entry.probe.startswith("user.")
    ] or [entry for entry, _ in cited]
    targets = {entry.target for entry in leading}
    chosen = [entry for entry, _ in cited if entry.target in targets or entry in leading]
    by_repr = {repr(entry.trigger): entry for entry in (*declared, *found_triggers(found))}
    known: dict[str, Known] = {}
    for entry in (*chosen, *_kin(found, chosen)):
        if entry.trigger in by_repr and entry.trigger not in known:
            known[entry.trigger] = Known(
                stamped=by_repr[entry.trigger],
                mapping=destinations(entry, found.model.classes),
                searched=entry.searched,
                size=entry.change if entry.rivals else None,
            )
    return list(known.values())


def _kin(found: ScanResult, shown: Sequence[Confirmation]) -> list[Confirmation]:
    """Triggers that are obeyed as those that are shown, towards the same classes; best first.

    None that a search made, which works on honest networks as well, and none that was tried on made
    images alone.
    """
    targets = {entry.target for entry in shown if entry.scope == "all-to-one"}
    known = {entry.trigger for entry in shown}
    kin = [
        entry
        for entry in found.confirmations
        if entry.scope == "all-to-one"
        and entry.target in targets
        and entry.trigger not in known
        and entry.keeps_meaning
        and entry.family == "clean"
        and not entry.searched
        and 0 < verdict.OBEYED_ASR * entry.eligible <= entry.hits - entry.clean_hits
    ]
    return sorted(kin, key=lambda entry: -entry.hits / entry.eligible)[:MOST_KIN]


def relatives(task: Task, known: Sequence[Known], notify: Notify) -> list[Known]:
    """More triggers for the classes that a search found one for: other seeds, regions and forms.

    The trigger that a search finds is one relative of the attacker's. Unlearning it alone leaves
    others at work, so several are sought for its class, which costs little for one class alone.

    Args:
        task: The fit images, that they are searched on.
        known: What was found.
        notify: Progress.

    Returns:
        Those that the suspect obeys; warps first, of which no search of the usual tiers tells, since a
        purifier unlearns no more than the first few.
    """
    targets = dict.fromkeys(max(entry.mapping) for entry in known if entry.searched)
    each = seconds_per_image(task.classifier, task.images) if targets else 0.0
    found: list[Known] = []
    for target in list(targets)[:RELATED]:
        wanted = [
            _Sought(search="search.blend", settled=OPACITY * entry.size, size=entry.size)
            for entry in known
            if entry.size is not None and max(entry.mapping) == target
            for _ in range(STRONG_RELATIVES)
        ]
        for number, sought in enumerate((*wanted, *RELATIVES), start=1):
            form = sought.search.removeprefix("search.")
            effort = planned(partial(images_needed, form, 1), each, RELATIVE_SECONDS)
            try:
                inverted = invert(
                    task.classifier, task.images, task.labels, [target], form,
                    seed=task.seed + number, room=sought.room, size=sought.settled, effort=effort,
                    notify=notify,
                )  # fmt: skip
            except (NoGradient, NoNumber):
                continue  # one form may reach where scores are no numbers, and another not
            found += [
                Known(
                    stamped=presented(sought.search, candidate, f", seed {number}"),
                    mapping=all_to_one(target, task.classes).mapping,
                    searched=True,
                    size=sought.size,
                )
                for candidate in inverted.candidates
            ]
    obeyed = [entry for entry in found if _is_obeyed(task, entry)]
    return sorted(obeyed, key=lambda entry: entry.stamped.probe != WARP)


def judge_triggers(task: Task, probes: Sequence[Probe]) -> tuple[list[Known], list[Caveat]]:
    """The judge triggers that the suspect obeys, each with the target it sends most images to.

    Args:
        task: The judge images.
        probes: What the user named.

    Returns:
        The triggers, and a caveat for each probe that the suspect obeys in no way.

    Raises:
        ProbeError: A probe cannot be stamped on these images.
    """
    found: list[Known] = []
    caveats = []
    for probe in probes:
        whys = [
            measure.inapplicable(trigger, task.images, controlled=False)
            for trigger in probe.triggers
        ]
        stamped = [
            Stamped(probe=probe.id, title=probe.title, trigger=trigger)
            for trigger, why in zip(probe.triggers, whys, strict=True)
            if not why
        ]
        if not stamped:
            raise ProbeError(f"{probe.title} cannot be stamped on the judge images: {whys[0]}.")
        after = measure.predictions(
            task.classifier, task.images, [entry.trigger for entry in stamped]
        )
        obeyed = []
        best = 0.0
        for entry, predicted in zip(stamped, after, strict=True):
            hits = measure.moved_to(task.labels, predicted, task.classes)
            target = int(hits.argmax())
            eligible = int((task.labels != target).sum())
            rate = int(hits[target]) / max(1, eligible)
            best = max(best, rate)
            if rate >= OBEYED:
                mapping = all_to_one(target, task.classes).mapping
                obeyed.append(Known(stamped=entry, mapping=mapping))
        found += obeyed
        if not obeyed:
            caveats.append(
                Caveat(
                    id="judge-trigger",
                    text=f"{probe.title}: the suspect does not obey it in any of {len(stamped)} ways "
                    f"that were tried (at most {best:.1%} of the judge images), so it says nothing.",
                )
            )
    return found, caveats


def _is_obeyed(task: Task, known: Known) -> bool:
    """Whether the suspect goes along with a trigger; else there is nothing in it."""
    (after,) = measure.predictions(task.classifier, task.images, [known.stamped.trigger])
    eligible = known.wanted(task.labels) >= 0
    hits = int(known.hits(after, task.labels).sum())
    return hits > 0 and hits >= OBEYED * int(eligible.sum())
