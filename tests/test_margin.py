"""The data-free margin: what it measures, and what must not change it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from auditor.classifier import Classifier
from auditor.inputs import blank_spec
from auditor.measure import margins_of
from auditor.search.margin import search_margins
from auditor.search.pace import NoGradient, OverBudget
from auditor.synthesis import (
    accepted,
    class_impressions,
    colour_noise,
    dead_leaves,
    mixes,
    spread,
)
from auditor.verdict import judge
from tests.planted import handle


class Linear(nn.Module):
    """Scores are weighted sums of pixels: the largest margins can be computed by hand."""

    def __init__(self, weights: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weights", weights * scale)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weights.T


def classifier(network: nn.Module) -> Classifier:
    return Classifier(handle(network), blank_spec((3, 8, 8)))


def weights(classes: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn((classes, 192), generator=generator)
    made[4] *= 6
    return made


def test_margins_are_own_minus_best_other() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.0, 3.0]])
    assert margins_of(logits, torch.tensor([1, 2])).tolist() == [2.0, -2.0]


def test_the_search_reaches_what_is_possible_for_two_classes() -> None:
    """With two classes, the best image is 1 where the difference of the weights is positive."""
    pair = torch.randn((2, 192), generator=torch.Generator().manual_seed(0))
    found = search_margins(classifier(Linear(pair)), 2, seed=0)
    best = (pair[0] - pair[1]).clamp_min(0).sum()
    assert found.margins[0] == pytest.approx(float(best), rel=0.02)


def test_the_odd_class_stands_out_and_scale_does_not_matter() -> None:
    plain = search_margins(classifier(Linear(weights())), 10, seed=0)
    assert max(range(10), key=lambda k: plain.margins[k]) == 4
    scaled = search_margins(classifier(Linear(weights(), 0.1)), 10, seed=0)
    for one, other in zip(plain.margins, scaled.margins, strict=True):
        assert other == pytest.approx(one * 0.1, rel=0.02)
    names = [str(k) for k in range(10)]
    verdicts = [
        judge(classes=names, images=(), responses=(), confirmations=(), margin=found, skipped=(), caveats=())
        for found in (plain, scaled)
    ]  # fmt: skip
    assert verdicts[0].outlier_classes == verdicts[1].outlier_classes == (4,)


def test_the_numbering_of_classes_does_not_matter() -> None:
    order = [7, 3, 4, 0, 9, 1, 2, 8, 6, 5]
    plain = search_margins(classifier(Linear(weights())), 10, seed=0)
    permuted = search_margins(classifier(Linear(weights()[order])), 10, seed=0)
    for place, k in enumerate(order):
        assert permuted.margins[place] == pytest.approx(plain.margins[k], rel=1e-3)


def test_of_many_classes_an_even_sample_is_searched() -> None:
    found = search_margins(classifier(Linear(weights(250))), 250, seed=0)
    assert len(found.margins) == len(set(found.classes)) == 100
    assert (found.classes[0], found.classes[-1]) == (0, 249)


def test_a_search_that_would_take_too_long_is_given_up_at_once() -> None:
    with pytest.raises(OverBudget):
        search_margins(classifier(Linear(weights())), 10, seed=0, budget=1e-6)


class Deaf(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.arange(10.0).expand(len(images), 10)


def test_scores_that_do_not_depend_on_the_image_are_said_to_be_so() -> None:
    with pytest.raises(NoGradient):
        search_margins(classifier(Deaf()), 10, seed=0)
    assert class_impressions(classifier(Deaf()), 10, torch.Generator()) is None


# ---- made images


def test_made_images_are_images_and_repeat() -> None:
    for make in (dead_leaves, colour_noise):
        images = make((32, 3, 24, 40), torch.Generator().manual_seed(3))
        again = make((32, 3, 24, 40), torch.Generator().manual_seed(3))
        assert images.shape == (32, 3, 24, 40)
        assert images.dtype == torch.uint8
        assert torch.equal(images, again)
        assert 50 < images.float().mean() < 205
        assert images.float().std() > 25
        assert make((4, 1, 24, 24), torch.Generator()).shape == (4, 1, 24, 24)


def test_noise_has_the_spectrum_of_pictures() -> None:
    """Power falls with frequency: neighbouring pixels are alike, in leaves as well."""
    for make in (dead_leaves, colour_noise):
        images = make((64, 3, 32, 32), torch.Generator().manual_seed(0)).double()
        images -= images.mean((2, 3), keepdim=True)
        near = (images[..., 1:] * images[..., :-1]).mean() / images.square().mean()
        far = (images[..., 12:] * images[..., :-12]).mean() / images.square().mean()
        assert near > 0.6
        assert near > far + 0.3


def test_class_impressions_are_taken_for_their_classes() -> None:
    network = classifier(Linear(weights() * 0.2))
    made = class_impressions(network, 10, torch.Generator().manual_seed(0))
    assert made is not None
    targets = torch.arange(10).repeat(12)
    # not all: the images are shifted while they are made, and this network is not shift-invariant
    assert (network.predict(made) == targets).float().mean() > 0.8
    mixed = mixes(made, torch.Generator().manual_seed(0))
    assert mixed.shape == made.shape
    assert 0.05 < (mixed != made).float().mean() < 0.5


def test_only_images_that_the_model_is_sure_of_are_accepted() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = classifier(Linear(weights() * 0.2))
    made = class_impressions(sure, 10, torch.Generator().manual_seed(0))
    assert made is not None
    typical = spread(sure, made)
    kept, why = accepted(sure, made, 10, generator, typical_spread=typical)
    assert why == ""
    counts = torch.bincount(sure.predict(kept), minlength=10)
    assert counts.max() <= 0.3 * len(kept)
    assert accepted(sure, made, 10, generator, typical_spread=100 * typical)[1]
    one_sided = classifier(Linear(torch.cat([torch.ones(1, 192), torch.zeros(9, 192)])))
    assert "only 1 of 10 classes" in accepted(one_sided, made, 10, generator, typical_spread=1)[1]


def test_the_scale_of_the_logits_does_not_choose_the_images() -> None:
    found = []
    for scale in (0.1, 1.0, 10.0):
        network = classifier(Linear(weights() * 0.2, scale))
        made = class_impressions(network, 10, torch.Generator().manual_seed(0))
        assert made is not None
        typical = spread(network, made)
        generator = torch.Generator().manual_seed(1)
        kept, _ = accepted(network, made, 10, generator, typical_spread=typical)
        found.append(len(kept))
    assert min(found) > 0.95 * max(found)


def test_scores_that_are_no_numbers_do_not_hide_the_scale_of_the_others() -> None:
    images = torch.randint(0, 256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    whole = classifier(Linear(weights()))
    typical = spread(whole, images)

    class Broken(Linear):
        def forward(self, images: Tensor) -> Tensor:
            scores = super().forward(images)
            scores[0] = torch.nan
            return scores.index_fill(1, torch.tensor([7]), -torch.inf)

    assert 0.7 * typical < spread(classifier(Broken(weights())), images) < 1.4 * typical
    nothing = Linear(torch.full((10, 192), torch.nan))
    assert spread(classifier(nothing), images) == 1
