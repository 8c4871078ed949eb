"""What every attack of the zoo must do to images, labels and the network that is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.zoo.attacks import ATTACKS, Attack, Batch, Setting
from bench.zoo.attacks.fba import recoloured, sunset
from bench.zoo.attacks.generators import Generated
from bench.zoo.attacks.input_aware import diverse
from bench.zoo.attacks.low_frequency import Gaussian, LowFrequency
from bench.zoo.attacks.surrogate import consulted, surrogate
from bench.zoo.networks import normalise
from bench.zoo.rows import AllToAll, AllToOne, LabelMap, SourceSpecific

CLASSES = 4
TARGET = 1
QUICK: dict[str, dict[str, Any]] = {
    "static": {"name": "BadNets", "probe": "patch.white-corner"},
    "clean-label": {"name": "SIG", "probe": "sine.sig"},
    "clb": {"iterations": 3, "surrogate_steps": 5},
    "lf": {"iterations": 3, "batch": 16, "surrogate_steps": 3},
    "input-aware": {"mask_steps": 2, "mask_batch": 4},
    "lira": {"every": 1},
    "issba": {"steps": 3, "batch": 8},
    "fba": {"steps": 2, "batch": 8, "surrogate_steps": 1},
}
GENERATED = sorted(name for name in ATTACKS if ATTACKS[name].restore is not Attack.restore)
SHAPES = [(1, 16), (3, 16), (3, 32)]


def network(channels: int = 3, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, CLASSES),
        )  # fmt: skip


def pictures(count: int, channels: int = 3, side: int = 16, *, seed: int = 0) -> Tensor:
    """Coarse random cells with some noise, ``(N, C, H, W)`` uint8."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(cells, (side, side), mode="bilinear")
    noise = 0.1 * torch.rand(smooth.shape, generator=generator)
    return (255 * (0.9 * smooth + noise)).round().to(torch.uint8)


def setting(
    name: str,
    *,
    channels: int = 3,
    side: int = 16,
    label_map: LabelMap | None = None,
    seed: int = 0,
) -> Setting:
    labels = torch.arange(64) % CLASSES
    pool = (labels == TARGET) == ATTACKS[name].clean_label
    return Setting(
        images=pictures(64, channels, side), labels=labels,
        chosen=pool & (torch.arange(64) < 24), classes=CLASSES,
        map=label_map or AllToOne(target=TARGET), normalise=normalise,
        network=network(channels).train(), fresh=lambda: network(channels, seed=1), steps=10,
        device=torch.device("cpu"), seed=seed,
    )  # fmt: skip


def ready(name: str, **fields: Any) -> tuple[Attack, Setting, Tensor | None]:
    attack = ATTACKS[name](**QUICK.get(name, {}))
    known = setting(name, **fields)
    return attack, known, attack.prepare(known)


def batch(known: Setting, *, progress: float = 0.0, seed: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(64, generator=generator)[:24]
    return Batch(
        images=known.images[index].float() / 255, labels=known.labels[index],
        chosen=known.chosen[index], generator=generator, progress=progress,
    )  # fmt: skip


def trained(name: str, **fields: Any) -> tuple[Attack, Setting]:
    """After a batch, so that generators are no longer as they were drawn."""
    attack, known, _ = ready(name, **fields)
    attack.poison(batch(known, seed=1))
    return attack, known


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


# ---- every attack --------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "side"), SHAPES)
@pytest.mark.parametrize("name", ATTACKS)
def test_stamp_keeps_shape_range_and_input(name: str, channels: int, side: int) -> None:
    attack, known = trained(name, channels=channels, side=side)
    images = known.images[:6].float() / 255
    kept = images.clone()
    stamped = attack.stamp(images)
    assert stamped.shape == images.shape
    assert stamped.dtype == images.dtype
    assert not stamped.requires_grad
    assert stamped.min() >= 0
    assert stamped.max() <= 1
    assert torch.equal(images, kept)
    assert not torch.equal(stamped, images)
    assert torch.equal(stamped, attack.stamp(images))


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"cba"}))
def test_what_is_stamped_on_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    """But for the composite attack, whose partners take turns."""
    attack, known = trained(name)
    images = known.images[:4].float() / 255
    alone = torch.cat([attack.stamp(image[None]) for image in images])
    torch.testing.assert_close(attack.stamp(images), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("label_map", [AllToOne(target=TARGET), AllToAll(), SourceSpecific()])
@pytest.mark.parametrize("name", ATTACKS)
def test_poison_relabels_chosen_images_only(name: str, label_map: LabelMap) -> None:
    if ATTACKS[name].clean_label and not isinstance(label_map, AllToOne):
        pytest.skip("clean-label attacks have one target")
    attack, known, _ = ready(name, label_map=label_map)
    clean = batch(known)
    poisoned = attack.poison(clean)
    count = len(clean.labels)
    expected = torch.where(clean.chosen, attack.wanted(clean.labels), clean.labels)
    assert torch.equal(poisoned.labels[:count], expected)
    assert poisoned.images.shape[1:] == clean.images.shape[1:]
    assert len(poisoned.images) == len(poisoned.labels)
    assert not poisoned.images.requires_grad
    assert poisoned.images.min() >= 0
    assert poisoned.images.max() <= 1
    if ATTACKS[name].clean_label:
        assert torch.equal(poisoned.labels, clean.labels)


@pytest.mark.parametrize("name", ATTACKS)
def test_poison_leaves_its_input_as_it_was(name: str) -> None:
    attack, known, _ = ready(name)
    clean = batch(known)
    kept = clean.images.clone(), clean.labels.clone(), clean.chosen.clone()
    whole = known.images.clone()
    attack.poison(clean)
    for now, before in zip((clean.images, clean.labels, clean.chosen), kept, strict=True):
        assert torch.equal(now, before)
    assert torch.equal(known.images, whole)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_the_network_is_asked_and_not_changed(name: str, training: bool) -> None:
    attack = ATTACKS[name](**QUICK.get(name, {}))
    known = setting(name)
    known.network.train(training)
    known.network[1].eval()  # one module may be in another mode than the others
    before = snapshot(known.network)
    attack.prepare(known)
    attack.poison(batch(known))
    assert equal(snapshot(known.network), before)
    modes = [module.training for module in known.network]
    assert modes == [training, False, *[training] * 5]
    for parameter in known.network.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_seed_is_the_only_source_of_randomness(name: str) -> None:
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        attack, known, replaced = ready(name)
        poisoned = [attack.poison(batch(known, seed=seed)) for seed in (1, 2)]
        stamped = attack.stamp(known.images[:6].float() / 255)
        results.append([*(each.images for each in poisoned), stamped, replaced])
    for first, second in zip(*results, strict=True):
        assert (first is None and second is None) or torch.equal(first, second)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_batch_without_chosen_images_keeps_its_labels(name: str) -> None:
    attack, known, _ = ready(name)
    clean = batch(known)
    clean.chosen = torch.zeros_like(clean.chosen)
    assert torch.equal(attack.poison(clean).labels, clean.labels)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_batch_of_chosen_images_only_is_poisoned(name: str) -> None:
    attack, known, _ = ready(name)
    clean = batch(known)
    only = Batch(
        images=clean.images[clean.chosen], labels=clean.labels[clean.chosen],
        chosen=clean.chosen[clean.chosen], generator=clean.generator, progress=0.2,
    )  # fmt: skip
    assert len(attack.poison(only).images) >= len(only.images)


@pytest.mark.parametrize("name", GENERATED)
def test_a_restored_attack_stamps_the_same(name: str) -> None:
    attack, known = trained(name)
    state = attack.state()
    assert state
    assert not any(tensor.requires_grad for tensor in state.values())
    images = known.images[:6].float() / 255
    other = ATTACKS[name](**QUICK[name])
    other.restore(state, channels=3, side=16)
    assert torch.equal(other.stamp(images), attack.stamp(images))


@pytest.mark.parametrize("name", GENERATED)
def test_a_state_is_a_copy(name: str) -> None:
    attack, known = trained(name)
    state = attack.state()
    kept = {key: value.clone() for key, value in state.items()}
    attack.poison(batch(known, seed=9))
    assert equal(state, kept)


# ---- one by one ----------------------------------------------------------------------------------


def test_clb_changes_chosen_images_by_sixteen_levels_at_most() -> None:
    _, known, replaced = ready("clb")
    assert replaced is not None
    assert replaced.dtype == torch.uint8
    change = (replaced.int() - known.images.int()).abs().amax(dim=(1, 2, 3))
    assert change.max() <= 16
    assert (change[known.chosen] > 8).all()
    assert not change[~known.chosen].any()


def test_clb_makes_images_harder() -> None:
    attack = ATTACKS["clb"](iterations=5, surrogate_steps=20)
    known = setting("clb")
    replaced = attack.prepare(known)
    assert replaced is not None
    judge = surrogate(known, steps=20)
    labels = known.labels[known.chosen]
    losses = [
        nn.functional.cross_entropy(
            judge(normalise(images[known.chosen].float() / 255)), labels
        ) for images in (known.images, replaced)
    ]  # fmt: skip
    assert losses[1] > losses[0] + 0.1


def test_lf_is_one_smooth_bounded_pattern() -> None:
    attack, known, _ = ready("lf", side=32)
    assert isinstance(attack, LowFrequency)
    pattern = attack.pattern
    assert pattern.min() >= 0
    assert pattern.max() == pytest.approx(0.2, abs=1e-6)
    spectrum = torch.fft.rfft2(pattern - pattern.mean()).abs().square().sum(dim=(0, 1))
    rows = torch.fft.fftfreq(32).abs()[:, None]
    low = (rows <= 4 / 32) & (torch.fft.rfftfreq(32)[None] <= 4 / 32)
    assert spectrum[low].sum() > 0.97 * spectrum.sum()
    images = known.images[:4].float() / 510
    torch.testing.assert_close(attack.stamp(images) - images, pattern.expand(4, -1, -1, -1))


def test_gaussian_filter_against_a_loop() -> None:
    sigma, reach = 1.0, 3
    image = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    steps = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(steps[:, None] ** 2 + steps[None] ** 2) / 2)
    kernel = kernel / kernel.sum()
    padded = nn.functional.pad(image, (reach,) * 4)[0, 0]
    expected = torch.stack(
        [(padded[r : r + 7, c : c + 7] * kernel).sum() for r in range(9) for c in range(9)]
    ).view(1, 1, 9, 9)
    torch.testing.assert_close(Gaussian(sigma)(image), expected)


def test_crossed_triggers_keep_the_label() -> None:
    attack, known = trained("input-aware")
    clean = batch(known)
    poisoned = attack.poison(clean)
    changed = (poisoned.images != clean.images).flatten(1).any(1)
    crossed = changed & ~clean.chosen
    assert int(crossed.sum()) == int(clean.chosen.sum())
    assert torch.equal(poisoned.labels[crossed], clean.labels[crossed])
    own = attack.stamp(clean.images[crossed])
    assert (poisoned.images[crossed] != own).flatten(1).any(1).all()


def test_diversity_loss_by_hand() -> None:
    first, second = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.6)
    made, other = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.3)
    assert float(diverse(first, second, made, other)) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_lira_changes_pixels_by_epsilon_at_most(epsilon: float) -> None:
    attack = ATTACKS["lira"](epsilon=epsilon, every=1)
    known = setting("lira")
    attack.prepare(known)
    clean = batch(known)
    poisoned = attack.poison(clean)
    change = (poisoned.images - clean.images).abs().amax(dim=(1, 2, 3))
    assert change.max() <= epsilon + 1e-6
    assert (change[clean.chosen] > 0).all()
    assert not change[~clean.chosen].any()


def test_lira_fixes_its_generator_late() -> None:
    attack, known = trained("lira")
    before = attack.state()
    attack.poison(batch(known, progress=0.95, seed=3))
    assert equal(attack.state(), before)
    attack.poison(batch(known, progress=0.1, seed=3))
    assert not equal(attack.state(), before)


def test_issba_learns_to_hide_bits() -> None:
    attack = ATTACKS["issba"](bits=2, steps=50, batch=12, fidelity=1.0, rate=5e-3)
    known = setting("issba")
    attack.prepare(known)
    stamped = attack.stamp(known.images[:32].float() / 255)
    assert attack.read(stamped).mean() > 0.8  # type: ignore[attr-defined]


def test_recolouring_finds_an_affine_map() -> None:
    images = pictures(3).float() / 255
    mixing = torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.4, 0.1], [0.0, 0.0, 0.6]])
    like = torch.einsum("nchw,cd->ndhw", images, mixing) + 0.1
    torch.testing.assert_close(recoloured(images, like), like, atol=0.03, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_sunset_is_a_picture(channels: int, side: int) -> None:
    picture = sunset(channels, side)
    assert picture.shape == (1, channels, side, side)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert picture.std() > 0.1


def test_detoxified_images_keep_the_label() -> None:
    attack, known, _ = ready("fba")
    clean = batch(known)
    poisoned = attack.poison(clean)
    others = (poisoned.images != clean.images).flatten(1).any(1) & ~clean.chosen
    assert int(others.sum()) == int(clean.chosen.sum())
    assert torch.equal(poisoned.labels[others], clean.labels[others])


def test_wanet_noise_images_keep_the_label() -> None:
    attack, known, _ = ready("wanet")
    clean = batch(known)
    poisoned = attack.poison(clean)
    noisy = (poisoned.images != clean.images).flatten(1).any(1) & ~clean.chosen
    assert int(noisy.sum()) == min(2 * int(clean.chosen.sum()), int((~clean.chosen).sum()))
    assert torch.equal(poisoned.labels[noisy], clean.labels[noisy])
    warped = attack.stamp(clean.images[noisy])
    assert (poisoned.images[noisy] != warped).flatten(1).any(1).all()


# ---- surrogate -----------------------------------------------------------------------------------


def test_a_surrogate_is_frozen_and_repeatable() -> None:
    known = setting("lf")
    first, second = (surrogate(known, steps=5) for _ in range(2))
    assert equal(snapshot(first), snapshot(second))
    assert not any(module.training for module in first.modules())
    assert not any(parameter.requires_grad for parameter in first.parameters())
    named = surrogate(known, steps=2, network="vgg-bn/8")
    assert named(normalise(known.images[:2].float() / 255)).shape == (2, CLASSES)


def test_consulting_restores_after_an_error() -> None:
    asked = network().train()
    asked[0].requires_grad_(False)

    def broken(use: Callable[[nn.Module], None]) -> None:
        with consulted(asked) as consultant:
            assert not any(module.training for module in consultant.modules())
            use(consultant)

    def fail(_: nn.Module) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        broken(fail)
    assert all(module.training for module in asked.modules())
    assert [p.requires_grad for p in asked.parameters()] == [False, True, True, True, True]


def test_generated_attacks_are_those_with_networks() -> None:
    assert {name for name in ATTACKS if issubclass(ATTACKS[name], Generated)} >= {
        "input-aware", "lira", "issba", "fba",
    }  # fmt: skip
