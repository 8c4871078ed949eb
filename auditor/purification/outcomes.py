"""What the suspect and models made of it do on the judge images, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

from torch import Tensor

from auditor import changing, measure
from auditor.classifier import Classifier, as_float
from auditor.purifiers.base import Known, Task
from auditor.results.facts import Counts, SplitFacts
from auditor.results.purify import Confusion, Outcome
from auditor.results.scan import Scope

COMPARED = 8
"""Images on which it is seen whether two triggers stamp the same."""
ALIKE = 0.1
"""Two triggers stamp the same where their images differ by less than this share of what one changes
(root mean squares)."""


class Judging:
    """The judge images, and what is counted on them.

    Rivals are the suspect, the changed model, and where there is one the fine-tuned model beside it.
    """

    def __init__(self, task: Task) -> None:
        """Take the judge images, with the suspect as `task.classifier`."""
        self.task = task
        self._said: dict[str, Tensor] = {}
        """Trigger -> the suspect's predictions."""
        self._plain: WeakKeyDictionary[Classifier, Tensor] = WeakKeyDictionary()
        """Model -> its predictions of the unstamped images, as long as it is there."""

    def __len__(self) -> int:
        return len(self.task.images)

    def accuracy(self, rivals: Sequence[Classifier]) -> Counts:
        """Rightly classified images."""
        labels = self.task.labels
        return _counts([int((self._predicted(rival) == labels).sum()) for rival in rivals])

    def outcomes(
        self, known: Sequence[Known], named: Sequence[Known], rivals: Sequence[Classifier]
    ) -> tuple[Outcome, ...]:
        """What is left of every trigger: of those that were found, then of those that only judge.

        Args:
            known: What was found.
            named: Judge triggers; those that no image can show are left out.
            rivals: See above.
        """
        entries = [*known, *named]
        answers = [self._answers(rival, entries) for rival in rivals]
        plain = [self._predicted(rival) for rival in rivals[:2]]
        labels, classes = self.task.labels, self.task.classes
        few = as_float(self.task.images[:COMPARED])
        found = [entry.stamped.trigger(few) for entry in known] if named else []
        outcomes = []
        for number, entry in enumerate(entries):
            hits = [int(entry.hits(answer[number], labels).sum()) for answer in answers]
            before, after = (entry.hits(predicted, labels) for predicted in plain)
            confused = before & after
            scope, target, source = _scope(entry.mapping, classes)
            outcomes.append(
                Outcome(
                    origin="found" if number < len(known) else "judge",
                    probe=entry.stamped.probe,
                    title=entry.stamped.title,
                    trigger=repr(entry.stamped.trigger),
                    scope=scope,
                    target=target,
                    source=source,
                    mapping=entry.mapping if target is None else None,
                    eligible=int((entry.wanted(labels) >= 0).sum()),
                    hits=_counts(hits),
                    unstamped=int(confused.sum()),
                    anyway=int((confused & entry.hits(answers[1][number], labels)).sum()),
                    found_too=number >= len(known)
                    and any(_alike(entry.stamped.trigger(few), other, few) for other in found),
                )
            )
        return tuple(o for o in outcomes if o.eligible or o.origin == "found")

    def confusion(self, rival: Classifier) -> Confusion:
        """Images of each class by what they are predicted as, and those that the rival loses and gains."""
        labels = self.task.labels
        before, after = self._predicted(self.task.classifier), self._predicted(rival)
        was, stays = before == labels, after == labels
        return Confusion(
            before=self._table(before),
            after=self._table(after),
            lost=int((was & ~stays).sum()),
            gained=int((stays & ~was).sum()),
        )

    def _table(self, predicted: Tensor) -> tuple[tuple[int, ...], ...]:
        cells = measure.cross_table(self.task.labels, predicted, self.task.classes)
        return tuple(tuple(row) for row in cells.tolist())

    @cached_property
    def facts(self) -> SplitFacts:
        """The record of the images."""
        return changing.split_facts(self.task.images, self.task.labels, self.task.classes)

    def _predicted(self, rival: Classifier) -> Tensor:
        """A model's predictions of the unstamped images; each is asked once."""
        if rival not in self._plain:
            self._plain[rival] = rival.predict(self.task.images)
        return self._plain[rival]

    def _answers(self, rival: Classifier, entries: Sequence[Known]) -> list[Tensor]:
        """What a model says of the images under each trigger; the suspect is asked once."""
        said = self._said if rival is self.task.classifier else {}
        triggers = {repr(entry.stamped.trigger): entry.stamped.trigger for entry in entries}
        new = [name for name in triggers if name not in said]
        found = measure.predictions(rival, self.task.images, [triggers[name] for name in new])
        said.update(zip(new, found, strict=True))
        return [said[repr(entry.stamped.trigger)] for entry in entries]


def _alike(one: Tensor, other: Tensor, plain: Tensor) -> bool:
    apart, changed = ((one - than).square().mean() for than in (other, plain))
    return bool(apart <= ALIKE**2 * changed)


def _scope(mapping: Sequence[int], classes: int) -> tuple[Scope, int | None, int | None]:
    """What a map of classes is, its target if there is one, and its source if there is one of several."""
    targets = {k for k in mapping if k >= 0}
    sources = [c for c, k in enumerate(mapping) if k >= 0]
    if len(targets) != 1:
        return "all-to-all", None, None
    (target,) = targets
    if len(sources) == 1 and classes > 2:
        return "source-specific", target, sources[0]
    return "all-to-one", target, None


def _counts(numbers: Sequence[int]) -> Counts:
    before, after, *rest = numbers
    return Counts(before=before, after=after, baseline=rest[0] if rest else None)
