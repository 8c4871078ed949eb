"""Trigger search by forward passes alone, for models without gradients.

Small patches of few colours are tried anywhere on the image, for all classes at once: one forward
pass tells of every class how far a patch moves an image towards it. The best of each class are
varied, and what is better is kept. After DeBackdoor (Popovic et al., USENIX Security 2025,
https://arxiv.org/abs/2503.21305), which anneals templates of triggers for one target at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.classifier import Classifier, as_float
from auditor.progress import Notify, silent
from auditor.search.forms import PatchForm, coarse, resized
from auditor.search.inversion import HANDED_ON, MARGIN, WORKS, Candidate, Inverted
from auditor.search.pace import Pace
from auditor.synthesis import TYPICAL_SPREAD, spread
from auditor.triggers.found import Overlay
from auditor.verdict import SMALL_AREA

WHAT = "patch of few colours"
MEASURE = "share of the image that it covers"
IMAGES = 12
TEMPLATES = 64
"""Templates a round."""
EXPLORING, CLIMBING, STRENGTHENING = 8, 8, 8
"""Rounds of templates at random, for each size; of variations of the best; and of those that are
made strong, for each class that is handed on."""
CLIMBERS = 8
"""Classes whose best templates are varied."""
LARGER = (1.0, 1.6, 2.6)
"""Sides that are tried, in units of that of the size that found triggers are judged at."""
CELLS = 4
"""Cells of a template, each way."""
FURTHEST = 2
"""Pixels that a variation moves."""
FEWEST = 4
"""Images of other classes that a class is searched on."""
HOPELESS = -30.0
"""Margins below count as this one, those that are no number too."""


class UnsuitableImages(Exception):
    """They are too few or too small; says so."""


@dataclass(frozen=True, kw_only=True)
class Templates:
    """T square patches of one size."""

    side: int
    cells: Tensor
    """``(T, C, CELLS, CELLS)`` colours in [0, 1]."""
    corners: Tensor
    """``(T, 2)`` rows and columns of their upper left pixels."""

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, rows: Tensor) -> Templates:
        return Templates(side=self.side, cells=self.cells[rows], corners=self.corners[rows])

    def layers(self, height: int, width: int) -> Tensor:
        """Pattern and, in the last channel, opacity: ``(T, C + 1, height, width)``."""
        count, channels = self.cells.shape[:2]
        layers = torch.zeros(count, channels + 1, height, width)
        patches = F.interpolate(self.cells, (self.side, self.side), mode="nearest-exact")
        for layer, patch, (top, left) in zip(layers, patches, self.corners.tolist(), strict=True):
            place = slice(top, top + self.side), slice(left, left + self.side)
            layer[(slice(0, -1), *place)] = patch
            layer[(-1, *place)] = 1
        return layers


def search_templates(
    classifier: Classifier,
    images: Tensor,
    groups: Tensor,
    classes: Sequence[int],
    *,
    seed: int,
    notify: Notify = silent,
    budget: float = math.inf,
) -> Inverted:
    """Search small patches that send images of all classes to one, by forward passes.

    Args:
        classifier: The suspect.
        images: ``(N, C, H, W)`` uint8 on its device.
        groups: ``(N,)`` class of each, on the CPU; a class is searched on images of the others.
        classes: Those to search.
        seed: Of all draws.
        notify: Progress.
        budget: Seconds that it may take; estimated after a few rounds.

    Raises:
        OverBudget: It would take longer.
        UnsuitableImages: They are too few, or so small that no patch of them is.
    """
    return _Search(classifier, images, groups, classes, seed, notify, budget).run()


class _Search:
    """One search in progress."""

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        groups: Tensor,
        classes: Sequence[int],
        seed: int,
        notify: Notify,
        budget: float,
    ) -> None:
        self.classifier, self.notify = classifier, notify
        self.draw = torch.Generator().manual_seed(seed)
        chosen = self._evenly(groups)
        self.images = as_float(images[chosen.to(images.device)])
        others = groups[chosen].unsqueeze(1) != torch.tensor(classes)
        enough = others.sum(0) >= FEWEST
        self.classes = [k for k, known in zip(classes, enough.tolist(), strict=True) if known]
        self.others = others[:, enough]
        """``(n, K)``: whether an image is one of another class."""
        channels, height, width = self.images.shape[1:]
        self.channels, self.height, self.width = coarse((channels, height, width))
        area = self.height * self.width
        judged = max(2, math.isqrt(int(PatchForm.AREA * area)))
        self.sides = [s for f in LARGER if (s := round(f * judged)) <= min(self.height, self.width)]
        if not self.classes:
            raise UnsuitableImages(f"needs {FEWEST} images of other classes or more")
        if not self.sides or judged**2 > SMALL_AREA * area:
            raise UnsuitableImages(f"images of {height} x {width} pixels are too small for patches")
        self.scale = TYPICAL_SPREAD / spread(self.classifier, self.images)
        self.rounds = len(self.sides) * (EXPLORING + CLIMBING)
        self.pace, self.done = Pace(self.rounds, budget, classifier.device), 0

    def _evenly(self, groups: Tensor) -> Tensor:
        """Images at random, of each class as many as of the others where that can be."""
        order = torch.randperm(len(groups), generator=self.draw)
        seen: dict[int, int] = {}
        turns = []
        for k in groups[order].tolist():
            turns.append(seen.get(k, 0))
            seen[k] = turns[-1] + 1
        return order[torch.tensor(turns).argsort(stable=True)[:IMAGES]]

    def run(self) -> Inverted:
        """Search every size, the smallest first; then make the best of the smallest strong."""
        sizes = torch.full((len(self.classes),), torch.inf)
        smallest: Templates | None = None
        scores = torch.empty(0)
        for side in self.sides:
            best, score, rate = self._best(side)
            size = side * side / (self.height * self.width)
            sizes = torch.where((rate >= WORKS) & sizes.isinf(), size, sizes)
            if smallest is None:
                smallest, scores = best, score
        assert smallest is not None  # noqa: S101 - there is a side
        reached = sizes.isfinite().nonzero().flatten().tolist()
        reached.sort(key=lambda row: (float(sizes[row]), -float(scores[row])))
        self.rounds = self.done + STRENGTHENING * len(reached[:HANDED_ON])
        candidates = tuple(
            Candidate(
                what=WHAT,
                target=self.classes[row],
                size=float(sizes[row]),
                trigger=self._strengthened(smallest, row),
            )
            for row in reached[:HANDED_ON]
        )
        return Inverted(
            what=WHAT,
            measure=MEASURE,
            classes=tuple(self.classes),
            sizes=tuple(size if math.isfinite(size) else None for size in sizes.tolist()),
            steps=self.done,
            images=len(self.images),
            candidates=candidates,
        )

    def _best(self, side: int) -> tuple[Templates, Tensor, Tensor]:
        """The best template of each class, with its mean margin and its ASR, ``(K,)`` each."""
        best = self._random(side, len(self.classes))
        score = torch.full((len(self.classes),), -torch.inf)
        rate = torch.zeros(len(self.classes))
        for step in range(EXPLORING + CLIMBING):
            if step < EXPLORING:
                tried = self._random(side, TEMPLATES)
            else:
                missed = (rate < WORKS).nonzero().flatten()
                if not len(missed):
                    break
                rows = missed[score[missed].argsort(descending=True)[:CLIMBERS]]
                tried = self._varied(best, rows.repeat(-(-TEMPLATES // len(rows)))[:TEMPLATES])
            margins, works = self._tried(tried, MARGIN)
            self.pace.step()
            top, row = margins.max(0)
            better = top > score
            best = _merged(best, tried[row], better)
            score = torch.where(better, top, score)
            rate = torch.where(better, works.gather(0, row[None])[0], rate)
        return best, score, rate

    def _strengthened(self, best: Templates, row: int) -> Overlay:
        """The template of one class, varied for the largest margin."""
        kept, score = best[torch.tensor([row])], -math.inf
        for _ in range(STRENGTHENING):
            tried = self._varied(kept, torch.zeros(TEMPLATES, dtype=torch.int64))
            margins, _ = self._tried(tried, math.inf)
            top = int(margins[:, row].argmax())
            if float(margins[top, row]) > score:
                kept, score = tried[torch.tensor([top])], float(margins[top, row])
        layers = kept.layers(self.height, self.width)[0]
        return Overlay.of(layers[:-1], layers[-1:])

    def _tried(self, tried: Templates, most: float) -> tuple[Tensor, Tensor]:
        """Mean margins towards each class, of at most `most` an image, and ASR: ``(T, K)`` each."""
        height, width = self.images.shape[-2:]
        layers = resized(tried.layers(self.height, self.width), (height, width))
        # in parts, since stamped images of all templates need much memory where they are large
        at_once = max(1, self.classifier.batch_size // len(self.images))
        logits = torch.cat([self._stamped(part) for part in torch.split(layers, at_once)])
        two, places = logits.topk(2, 1)
        others = two[:, :1].repeat(1, logits.shape[1])
        others.scatter_(1, places[:, :1], two[:, 1:])
        margins = (logits - others)[:, self.classes].view(len(tried), len(self.images), -1)
        margins = margins.nan_to_num(HOPELESS).clamp(HOPELESS, most)
        self.done += 1
        self.notify("searching patches by trial", min(self.done, self.rounds), self.rounds)
        counted = self.others.sum(0)
        return (
            torch.where(self.others, margins, 0).sum(1) / counted,
            ((margins > 0) & self.others).sum(1) / counted,
        )

    def _stamped(self, layers: Tensor) -> Tensor:
        """Scaled logits ``(T * n, K')`` of all images under templates."""
        layers = layers.to(self.images.device).unsqueeze(1)
        stamped = torch.lerp(self.images, layers[:, :, :-1], layers[:, :, -1:]).flatten(0, 1)
        return self.classifier.logits(stamped).float().cpu() * self.scale

    # ---- drawing

    def _random(self, side: int, count: int) -> Templates:
        """A third of one colour, a third chequered in two, a third of many; anywhere."""
        shape = count, self.channels, 1, 1
        first, second = self._colours(shape), self._colours(shape)
        many = self._colours((count, self.channels, CELLS, CELLS))
        rows = torch.arange(CELLS)
        odd = (rows[:, None] + rows[None, :]) % 2
        kind = torch.randint(3, (count, 1, 1, 1), generator=self.draw)
        cells = torch.where(kind == 0, first, torch.where(odd == 1, first, second))
        free = torch.tensor([self.height - side + 1, self.width - side + 1])
        corners = (torch.rand(count, 2, generator=self.draw) * free).long()
        return Templates(side=side, cells=torch.where(kind == 2, many, cells), corners=corners)

    def _varied(self, templates: Templates, rows: Tensor) -> Templates:
        """Variations of some templates: moved, or with a share of the cells in other colours."""
        parents, count = templates[rows], len(rows)
        moves = torch.randint(-FURTHEST, FURTHEST + 1, (count, 2), generator=self.draw)
        moved = torch.rand(count, 1, generator=self.draw) < 0.5
        free = torch.tensor([self.height - templates.side, self.width - templates.side])
        corners = (parents.corners + moves * moved).clamp_min(0).minimum(free)
        share = torch.rand(count, 1, 1, 1, generator=self.draw) / 2
        shape = parents.cells.shape
        changed = torch.rand(count, 1, *shape[2:], generator=self.draw) < share
        cells = torch.where(changed & ~moved[:, :, None, None], self._colours(shape), parents.cells)
        return Templates(side=templates.side, cells=cells, corners=corners)

    def _colours(self, shape: tuple[int, ...]) -> Tensor:
        """Black, white and the pure colours between them; one in four is any."""
        free = torch.rand(shape, generator=self.draw)
        mixed = torch.rand(shape[:1] + (1,) * (len(shape) - 1), generator=self.draw) < 0.25
        return torch.where(mixed, free, free.round())


def _merged(old: Templates, new: Templates, better: Tensor) -> Templates:
    return Templates(
        side=old.side,
        cells=torch.where(better[:, None, None, None], new.cells, old.cells),
        corners=torch.where(better[:, None], new.corners, old.corners),
    )
