"""The strongest purification that clean accuracy can bear.

Published methods have a strength (a threshold, a weight in the loss) that their papers tune by data
set, some of them by the attack success rate on test images. Here it is chosen a model at a time, on
fit images that are kept back from the fitting, and by clean accuracy alone: no trigger is needed,
and none is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from auditor.purifiers.base import Task, all_finite, checked, parted, seeded
from auditor.results.purify import Check, Stage, What

ACC_SHARE = 2 / 3
"""Of the accuracy that may be lost, so much is spent, since other images will judge."""


Run = tuple[int, int, float]
"""Steps, images and seconds of a training, as `loop` returns them."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What one strength of a method makes of the suspect."""

    settings: dict[str, str]
    """The strength, by its name in the paper."""
    tensors: dict[str, Tensor]
    """Name -> new values."""
    masks: dict[str, Tensor] = field(default_factory=dict)
    """As of `Purified`."""
    run: Run = (0, 0, 0.0)
    """Of the training for this strength, where there was one."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A strength that was tried, and what it did on the images for choosing."""

    settings: dict[str, str]
    run: Run
    check: Check


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The candidate that was chosen, and all trials."""

    candidate: Candidate
    place: int
    """Of the candidate among the trials."""
    trials: tuple[Trial, ...]
    holds: bool
    """It costs no more accuracy than is allowed; False: it is the one that costs least."""
    accuracy: float
    """Of the suspect, on the images for choosing."""
    least: float
    """The accuracy that is allowed there."""
    where: str
    """Which images these are, in words."""

    def stages(self, what: What) -> tuple[Stage, ...]:
        """A stage for each trial, where each strength was trained for itself."""
        return tuple(
            self._stage(what, trial, (trial.check,), trial.run, kept=place == self.place)
            for place, trial in enumerate(self.trials)
        )

    def stage(self, what: What, run: Run) -> Stage:
        """One stage for all trials, where they are ways to use one thing that was trained.

        Args:
            what: What was changed.
            run: Steps, images and seconds of that training. The checks count the trials instead.
        """
        checks = tuple(
            replace(trial.check, step=number) for number, trial in enumerate(self.trials, start=1)
        )
        return self._stage(what, self.trials[self.place], checks, run, kept=True)

    def _stage(
        self, what: What, trial: Trial, checks: tuple[Check, ...], run: Run, *, kept: bool
    ) -> Stage:
        strength = ", ".join(f"{name} {value}" for name, value in trial.settings.items())
        within = trial.check.acc >= self.least
        return Stage(
            what=what,
            settings=trial.settings,
            steps=run[0],
            images=run[1],
            seconds=run[2],
            checks=checks,
            outcome=f"{strength}: ACC {self.accuracy:.1%} to {trial.check.acc:.1%} on {self.where}, "
            f"{'within' if within else 'beyond'} the loss that is allowed there. "
            f"{'Kept.' if kept else 'Not kept.'}",
            kept=kept,
        )


def strongest(task: Task, candidates: Iterable[Candidate]) -> Chosen:
    """The first candidate that clean accuracy can bear; else the one that costs least of it.

    Args:
        task: What the purifier was given; candidates are fitted on ``parted(...).fit`` of its images.
        candidates: From the strongest to the gentlest, at least one. Made one after the other, and no
            further than needed.
    """
    trials = _Trials(task)
    for candidate in candidates:
        if trials.holds(candidate):
            break
    return trials.chosen()


def bisected(task: Task, candidates: Sequence[Callable[[], Candidate]]) -> Chosen:
    """As `strongest`, where each candidate costs a training: by halves, and so in few of them.

    It takes for granted that what is gentler than a strength that accuracy bears is borne as well.
    Where there are too few images to keep some back, accuracy says nothing: those that are fitted on
    are learnt by heart at any strength. Then only the gentlest is made.

    Args:
        task: As of `strongest`.
        candidates: From the strongest to the gentlest, at least one.
    """
    trials = _Trials(task)
    if not parted(len(task.images), task.seed).apart:
        candidates = candidates[-1:]
    first, last = 0, len(candidates)
    while first < last:
        middle = (first + last) // 2
        with seeded(task.seed):
            candidate = candidates[middle]()
        if trials.holds(candidate):
            last = middle
        else:
            first = middle + 1
    return trials.chosen()


class _Trials:
    """Candidates held against the images for choosing; the best so far is kept."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._parts = parted(len(task.images), task.seed)
        self._accuracy = self._check(0, {}).acc
        self._least = self._accuracy - task.max_acc_drop * ACC_SHARE
        self._best: Candidate | None = None
        self._place = 0
        self._trials: list[Trial] = []

    def _check(self, step: int, tensors: dict[str, Tensor]) -> Check:
        if not all_finite(tensors.values()):
            return Check(step=step, asr=0.0, acc=0.0, loss=0.0)
        return checked(self._task, tensors, step)

    def holds(self, candidate: Candidate) -> bool:
        """Try a candidate; one that holds takes the place of those before, which are gentler."""
        found = self._check(candidate.run[0], candidate.tensors)
        self._trials.append(Trial(settings=candidate.settings, run=candidate.run, check=found))
        holds = found.acc >= self._least
        best = self._trials[self._place].check.acc
        if self._best is None or holds or found.acc > best:
            self._best, self._place = candidate, len(self._trials) - 1
        return holds

    def chosen(self) -> Chosen:
        """The best one."""
        if self._best is None:
            raise ValueError("there is no candidate")
        kept = (
            "kept-back fit images"
            if self._parts.apart
            else "fit images (too few to keep some back)"
        )
        return Chosen(
            candidate=self._best,
            place=self._place,
            trials=tuple(self._trials),
            holds=self._trials[self._place].check.acc >= self._least,
            accuracy=self._accuracy,
            least=self._least,
            where=f"{len(self._parts.choose)} {kept}",
        )
