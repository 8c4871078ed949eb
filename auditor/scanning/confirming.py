"""Candidates -> confirmations: what a screen or a search proposes, on other images, with controls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from auditor import measure, verdict
from auditor.classifier import Classifier
from auditor.measure import Family, Half, Hypothesis, Stamped
from auditor.progress import Notify
from auditor.results.facts import Skipped
from auditor.results.scan import Confirmation
from auditor.search.searches import Proposed
from auditor.triggers.base import Trigger

CONFIRMED = 6
"""Triggers that are confirmed for one hypothesis, those first that beat their controls most."""
CONFIRMED_A_PROBE = 2
EVEN = 0.5
"""Error probability of a bound that a screen asks for: other images decide."""

Controlled = Mapping[Stamped, list[tuple[Trigger, Tensor]]]
"""Trigger -> its matched controls, each with the predictions under it."""
Screened = tuple[Stamped, Hypothesis, Confirmation]


class Confirming:
    """Confirms what was found in one suspect, as far as time allows; `skipped` says what was left."""

    def __init__(
        self, classifier: Classifier, classes: int, *, deadline: float, notify: Notify
    ) -> None:
        """Begin with nothing left out.

        Args:
            classifier: The suspect.
            classes: K.
            deadline: `time.monotonic` value after which no batch is started.
            notify: Progress.
        """
        self.classifier, self.classes = classifier, classes
        self.deadline, self.notify = deadline, notify
        self.skipped: list[Skipped] = []
        self._usual: dict[str, float | None] = {}
        """Kind of images -> `measure.usual_margin` of the screening ones."""

    def declared(
        self, family: Family, entries: Sequence[Stamped], after: Tensor
    ) -> list[Confirmation]:
        """Candidates of the screen: against their controls there, the best then on held-out images.

        They are ranked by what they do beyond their worst control, so that triggers which merely
        break a fragile model do not crowd out one that it listens to.

        Args:
            family: The images.
            entries: T triggers that were stamped on the screening ones.
            after: ``(T, N)`` predictions under them.
        """
        candidates = [
            (entry, predicted, hypothesis)
            for entry, predicted in zip(entries, after, strict=True)
            for hypothesis in measure.hypotheses(
                family.screen.groups, predicted, self.classes, held_out=family.held_out
            )
        ]
        controlled = self._controls(family, family.screen, [entry for entry, _, _ in candidates])
        screened = [
            (
                entry,
                hypothesis,
                measure.confirmation(
                    entry, hypothesis, family, family.screen, predicted, controlled[entry],
                    held_out=False,
                    surer=None if family.held_out else self._surer(family, entry, hypothesis),
                ),
            )
            for entry, predicted, hypothesis in candidates
            if entry in controlled
        ]  # fmt: skip
        late = {entry.probe for entry, _, _ in candidates if entry not in controlled}
        if not family.held_out:
            self._note_late(late)
            return [seen for _, _, seen in screened]
        chosen = _strongest(screened)
        stamped = list(dict.fromkeys(entry for entry, _, _ in chosen))
        on = measure.predictions(
            self.classifier, family.confirm.images, [entry.trigger for entry in stamped],
            deadline=self.deadline,
        )  # fmt: skip
        predictions = dict(zip(stamped, on, strict=False))
        held_out = self._controls(family, family.confirm, list(predictions))
        confirmed = [
            measure.confirmation(
                entry, hypothesis, family, family.confirm, predictions[entry], held_out[entry],
                held_out=True,
                surer=self._surer(family, entry, hypothesis),
            )
            for entry, hypothesis, _ in chosen
            if entry in held_out
        ]  # fmt: skip
        self._note_late(late | {entry.probe for entry in stamped if entry not in held_out})
        done = [(entry, hypothesis) for entry, hypothesis, _ in chosen if entry in held_out]
        rest = [seen for entry, hypothesis, seen in screened if (entry, hypothesis) not in done]
        return confirmed + rest

    def searched(self, family: Family, proposed: Sequence[Proposed]) -> list[Confirmation]:
        """What searches propose, against matched controls, on images that they have not seen."""
        entries = [one.stamped for one in proposed]
        half = family.confirm
        after = measure.predictions(
            self.classifier, half.images, [entry.trigger for entry in entries],
            deadline=self.deadline,
        )  # fmt: skip
        controlled = self._controls(family, half, entries[: len(after)])
        self._note_late(entry.probe for entry in entries if entry not in controlled)
        return [
            self._found(family, one, predicted, controlled[one.stamped])
            for one, predicted in zip(proposed, after, strict=False)
            if one.stamped in controlled
        ]

    def _found(
        self,
        family: Family,
        one: Proposed,
        after: Tensor,
        controls: Sequence[tuple[Trigger, Tensor]],
    ) -> Confirmation:
        """One searched trigger, counted; also held against those of other classes, if it has rivals."""
        hypothesis = measure.all_to_one(one.target, self.classes)
        driven = self._driven(family, one.stamped.trigger, hypothesis.mapping)
        rivals = [
            (target, trigger, self._driven(family, trigger, [target] * self.classes) < driven)
            for target, trigger in one.rivals
        ]
        return measure.confirmation(
            one.stamped, hypothesis, family, family.confirm, after, controls,
            held_out=True,
            searched=True,
            surer=self._beyond(family, driven),
            rivals=rivals,
        )  # fmt: skip

    def _controls(self, family: Family, half: Half, entries: Sequence[Stamped]) -> Controlled:
        """Every trigger's matched controls with the predictions under them, as far as time allows."""
        found: dict[Stamped, list[tuple[Trigger, Tensor]]] = {}
        unique = list(dict.fromkeys(entries))
        for done, entry in enumerate(unique):
            self.notify(f"controls of {entry.probe} on {family.name} images", done, len(unique))
            controls = measure.matched_controls(entry.trigger)
            predicted = measure.predictions(
                self.classifier, half.images, controls, deadline=self.deadline
            )
            if len(predicted) == len(controls):
                found[entry] = list(zip(controls, predicted, strict=True))
        return found

    def _surer(self, family: Family, entry: Stamped, hypothesis: Hypothesis) -> Tensor | None:
        """On which confirming images a trigger makes the model surer than it usually is.

        None on made images, which are chosen for how sure the model is of them.
        """
        if family.name != "clean":
            return None
        return self._beyond(family, self._driven(family, entry.trigger, hypothesis.mapping))

    def _driven(self, family: Family, trigger: Trigger, mapping: Sequence[int]) -> Tensor:
        return measure.driven(self.classifier, family.confirm, trigger, mapping)

    def _beyond(self, family: Family, driven: Tensor) -> Tensor:
        """Which images are driven further than half of the unstamped ones; none where scores do not tell."""
        if family.name not in self._usual:
            logits = self.classifier.logits(family.screen.images)
            self._usual[family.name] = measure.usual_margin(logits)
        usual = self._usual[family.name]
        return driven > (math.inf if usual is None else usual)

    def _note_late(self, probes: Iterable[str]) -> None:
        self.skipped += [
            Skipped(what=f"confirmation of {probe}", reason="time budget", untried=1)
            for probe in sorted(set(probes))
        ]


def _strongest(screened: Sequence[Screened]) -> list[Screened]:
    """What goes on to the held-out images: for each hypothesis, the triggers with most effect.

    Effect beyond the worst control; at half of its weight beyond the better half of them, where nearly
    all images are moved, and for a small change whose controls work too, beyond what the model answers
    unstamped. What the verdict would count must not be lost here.
    """
    chosen: list[Screened] = []
    taken: dict[object, list[str]] = {}
    for entry, hypothesis, seen in sorted(screened, key=lambda one: -_effect(one[2])):
        key = (hypothesis.scope, hypothesis.target, hypothesis.source, hypothesis.shift)
        probes = taken.setdefault(key, [])
        if _effect(seen) < verdict.SCREEN_EXCESS:
            continue
        if len(probes) < CONFIRMED and probes.count(entry.probe) < CONFIRMED_A_PROBE:
            probes.append(entry.probe)
            chosen.append((entry, hypothesis, seen))
    return chosen


def _effect(seen: Confirmation) -> float:
    effect = (seen.hits - verdict.worst_control(seen)) / max(1, seen.eligible)
    if verdict.is_obeyed(seen, alpha=EVEN):
        effect = max(effect, verdict.typical_excess_bound(seen, alpha=EVEN) / 2)
    if verdict.is_shortcut(seen, alpha=EVEN):
        effect = max(effect, (seen.hits - seen.clean_hits) / seen.eligible / 2)
    return effect
