"""Laws that hold for every trigger kind, every trigger of the battery, and their controls."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import auditor.triggers
from auditor.errors import ProbeError
from auditor.probes import select, shipped_probes
from auditor.triggers import TRIGGERS, Trigger
from auditor.triggers.base import quantised, wrapped
from auditor.triggers.blend import Blend, Columns, Noise
from auditor.triggers.colour import ColourMatrix, Curve, Filter
from auditor.triggers.compose import Compose
from auditor.triggers.frequency import Frequency
from auditor.triggers.geometry import span
from auditor.triggers.image import ImageFile
from auditor.triggers.patch import Block, Patch, RandomPatch, Square
from auditor.triggers.pictures import scrambled
from auditor.triggers.quantise import DisplacedError, Quantise
from auditor.triggers.rotate import Rotate
from auditor.triggers.sinusoid import Sinusoid
from auditor.triggers.warp import GridWarp, Warp

BATTERY = [(p.id, trigger) for p in shipped_probes() for trigger in p.triggers]
STANDARD = [(p.id, trigger) for p in select("standard") for trigger in p.triggers]
CLASSES = {made.__name__: made for made in (TRIGGERS[name] for name in TRIGGERS)}
NAMESPACE = {**CLASSES, "Block": Block, "DisplacedError": DisplacedError}
SHAPES = [(3, 32, 32), (3, 64, 64), (1, 28, 28)]


def photos(channels: int, height: int, width: int, n: int = 3) -> Tensor:
    """8-bit images with smooth content and some noise."""
    made = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, channels, 5, 5, generator=made)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    x = 0.8 * x + 0.2 * torch.rand(x.shape, generator=made)
    return (x * 255).round() / 255


def applies(trigger: Trigger, x: Tensor) -> bool:
    return not (isinstance(trigger, Frequency) and x.shape[1] == 1)


def ids(entries: list[tuple[str, Trigger]]) -> list[str]:
    return [f"{name}-{i}" for i, (name, _) in enumerate(entries)]


def test_every_kind_is_in_the_battery_or_needs_a_file() -> None:
    used = {type(trigger) for _, trigger in BATTERY}
    missing = {name for name in TRIGGERS if TRIGGERS[name] not in used}
    assert missing == {"addition", "grid-warp", "image", "noise", "overlay"}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_keeps_shape_type_range_and_input(shape: tuple[int, int, int]) -> None:
    x = photos(*shape)
    before = x.clone()
    for name, trigger in BATTERY:
        if not applies(trigger, x):
            continue
        y = trigger(x)
        assert y.shape == x.shape, name
        assert y.dtype == x.dtype, name
        assert y.min() >= 0, name
        assert y.max() <= 1, name
        assert y.isfinite().all(), name
        assert torch.equal(x, before), name
        assert y.data_ptr() != x.data_ptr(), name
        assert torch.equal(y, trigger(x)), name
        if trigger.rounding != "none":
            torch.testing.assert_close(y * 255, (y * 255).round(), atol=1e-4, rtol=0)


def test_changes_every_colour_image() -> None:
    x = photos(3, 32, 32)
    for name, trigger in BATTERY:
        assert ((trigger(x) - x).abs().amax((1, 2, 3)) > 2 / 255).all(), (name, trigger)


def test_repr_rebuilds_and_hashes() -> None:
    for name, trigger in BATTERY:
        for made in (trigger, trigger.control(0), trigger.control(1)):
            again = eval(repr(made), NAMESPACE)  # noqa: S307
            assert again == made, name
            assert hash(again) == hash(made), name


def test_triggers_of_the_battery_differ() -> None:
    assert len({trigger for _, trigger in BATTERY}) == len(BATTERY)
    x = photos(3, 32, 32)
    seen: dict[bytes, str] = {}
    for name, trigger in STANDARD:
        key = trigger(x).numpy().tobytes()
        assert key not in seen, (name, seen.get(key))
        seen[key] = name


@pytest.mark.parametrize(("name", "trigger"), STANDARD, ids=ids(STANDARD))
def test_controls_differ_and_are_triggers(name: str, trigger: Trigger) -> None:
    x = photos(3, 32, 32)
    stamps = [trigger(x), *(trigger.control(seed)(x) for seed in range(4))]
    for i, one in enumerate(stamps):
        for other in stamps[:i]:
            assert not torch.equal(one, other), (name, trigger)
    assert trigger.control(2) == trigger.control(2)
    for y in stamps[1:]:
        assert y.shape == x.shape
        assert y.isfinite().all()
        # of comparable strength: within a factor of four (root mean square)
        own, theirs = ((z - x).square().mean().sqrt().item() for z in (stamps[0], y))
        assert own / 4 < theirs < own * 4, (name, trigger, own, theirs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_controls_of_patches_stay_in_place(shape: tuple[int, int, int]) -> None:
    grey = torch.full((1, *shape), 0.37)
    for name, trigger in BATTERY:
        if not isinstance(trigger, Patch | Square | RandomPatch):
            continue
        own = (trigger.stamp(grey) != grey).any(1)
        for seed in (0, 1):
            # a random colour may happen to be the grey of the image: no more than that
            theirs = (trigger.control(seed).stamp(grey) != grey).any(1)
            assert not (theirs & ~own).any(), (name, trigger)
            assert (theirs & own).sum() >= 0.75 * own.sum(), (name, trigger)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)], ids=str)
def test_gradients_flow(shape: tuple[int, int, int]) -> None:
    quick = [t for p in select("quick") for t in p.triggers]
    others = [Filter(name="toaster"), Filter(name="nashville"), Filter(name="kelvin")]
    others += [Curve(gamma=(0.5, 0.5, 0.5)), ColourMatrix(offset=(0.1, 0, 0)), Noise(amplitude=9)]
    others += [Quantise(dither="floyd"), DisplacedError(of=Quantise())]
    others += [Compose(parts=(Sinusoid(), Square()))]
    for trigger in [*quick, *others]:
        x = photos(*shape)
        x[:, :, 0] = 0  # black: square roots must not explode
        if not applies(trigger, x):
            continue
        plain = trigger(x)
        x.requires_grad_()
        y = trigger(x)
        assert torch.allclose(y, plain, atol=1e-6), trigger
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all(), trigger
        assert (x.grad != 0).float().mean() > 0.5, trigger


def test_constants_built_in_inference_mode_serve_gradients() -> None:
    for probe in select("quick"):
        for trigger in probe.triggers:
            with torch.inference_mode():
                trigger(photos(3, 20, 24))
            x = photos(3, 20, 24).requires_grad_()
            trigger(x).sum().backward()


def test_grey_images_refuse_chroma_triggers() -> None:
    with pytest.raises(ProbeError, match="grey"):
        Frequency()(photos(1, 28, 28))


def test_structure_is_declared() -> None:
    # of those that are composed, the parts say it
    needing = {name for name in TRIGGERS if name != "compose" and TRIGGERS[name].needs_structure}
    assert needing == {
        *("warp", "grid-warp", "quantise", "rotate", "colour-matrix", "curve", "filter")
    }


# ---- geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "size", "resize", "expected"),
    [
        (29, 3, 32, "scale", (29, 3)),
        (-3, 3, 32, "keep", (29, 3)),
        (29, 3, 64, "scale", (58, 6)),
        (29, 3, 64, "keep", (61, 3)),
        (28, 3, 224, "scale", (196, 21)),
        (1, 3, 64, "keep", (1, 3)),
        (14, 3, 64, "scale", (28, 6)),
        (14, 3, 65, "keep", (31, 3)),
        (15, 3, 32, "keep", (15, 3)),
        (30, 1, 8, "scale", (7, 1)),
        (0, 32, 28, "scale", (0, 28)),
        (0, 32, 28, "keep", (0, 28)),
    ],
)
def test_span(start: int, length: int, size: int, resize: str, expected: tuple[int, int]) -> None:
    assert span(start, length, native=32, size=size, resize=resize) == expected


def test_scaled_corner_pattern_is_the_nearest_resize() -> None:
    hook = Patch(blocks=(Block(at=(29, 29), cells=((0, 0, 255), (0, 255, 0), (255, 0, 255))),))
    small = hook(torch.full((1, 3, 32, 32), 0.5))
    large = hook(torch.full((1, 3, 64, 64), 0.5))
    assert torch.equal(large, small.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_square_places() -> None:
    x = torch.zeros(1, 3, 32, 32)
    rows, columns = Square(size=2, where="top-right", gap=1)(x)[0, 0].nonzero().T.tolist()
    assert (set(rows), set(columns)) == ({1, 2}, {29, 30})
    y = Square(size=3, pattern="checker", colour="red", second="blue", where="top-left")(x)[0]
    assert y[0, :3, :3].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert y[2, :3, :3].tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_opacity_of_cells() -> None:
    x = torch.zeros(1, 3, 32, 32)
    cells = (((255, 0, 0, 0.5), None),)
    y = Patch(blocks=(Block(at=(0, 0), cells=cells),), alpha=0.4, rounding="none")(x)
    assert y[0, :, 0, 0].tolist() == pytest.approx([0.2, 0, 0])
    assert y.sum().item() == pytest.approx(0.2)


# ---- controls ------------------------------------------------------------------------------------


def test_patterned_patches_are_permuted_and_plain_ones_recoloured() -> None:
    cells = ((0, 0, 255), (0, 255, 0), (255, 0, 255))
    hook = Patch(blocks=(Block(at=(29, 29), cells=cells),))
    permuted = hook.control(0).blocks[0].cells
    assert sorted(sum(permuted, ())) == sorted(sum(cells, ()))
    assert permuted != cells
    coloured = hook.control(1).blocks[0].cells
    assert len({cell for row in coloured for cell in row}) == 9
    white = Square().control(0).blocks[0].cells
    assert len({cell for row in white for cell in row}) == 9


def test_nearly_constant_patches_are_recoloured() -> None:
    cells = tuple(tuple(range(240 + 3 * row, 243 + 3 * row)) for row in range(3))
    control = Patch(blocks=(Block(at=(0, 0), cells=cells),)).control(0)
    assert all(isinstance(cell, tuple) for row in control.blocks[0].cells for cell in row)


def test_scrambled_pictures_keep_levels_and_lose_content() -> None:
    picture = photos(3, 32, 32, n=1)[0]
    mixed = scrambled(picture, 3)
    assert torch.equal(mixed.flatten(1).sort().values, picture.flatten(1).sort().values)
    own, other = (z - z.mean((1, 2), keepdim=True) for z in (picture, mixed))
    correlation = (own * other).sum() / (own.norm() * other.norm())
    assert abs(correlation.item()) < 0.5
    power = [torch.fft.rfft2(z).abs()[:, :4, :4].sum().item() for z in (own, other)]
    assert power[1] == pytest.approx(power[0], rel=0.3)


def test_control_of_quantisation_has_its_strength() -> None:
    x = photos(3, 32, 32)
    trigger = Quantise(rounding="none")
    rms = [(t(x) - x).square().mean().sqrt().item() for t in (trigger, trigger.control(1))]
    assert rms[1] == pytest.approx(rms[0], rel=0.1)
    assert isinstance(trigger.control(0), Noise)


def test_control_of_colours_has_equal_mean_change() -> None:
    cube = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3).T.reshape(1, 3, 27, 27)
    trigger = Curve(gain=(0.7514690954, 1, 1), gamma=(0.5, 1, 1))
    changes = [(t(cube) - cube).abs().mean().item() for t in (trigger, trigger.control(5))]
    assert changes[1] == pytest.approx(changes[0], rel=0.02)


def test_control_of_rotation_turns_back() -> None:
    assert Rotate(degrees=16).control(0) == Rotate(degrees=-16)
    assert -20 <= Rotate(degrees=16).control(3).degrees <= -12


def test_random_draws_keep_place_and_strength_under_control() -> None:
    x = torch.full((1, 3, 32, 32), 0.5)
    sizes = set()
    for seed in range(12):
        trigger = RandomPatch(seed=seed)
        area = (trigger.stamp(x) != x).any(1)
        sizes.add(int(area.sum()))
        assert torch.equal(area, (trigger.control(0).stamp(x) != x).any(1))
    assert len(sizes) >= 4


# ---- images from files ---------------------------------------------------------------------------


def saved(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def test_image_modes(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:4, :4] = (200, 0, 100)
    file = saved(tmp_path / "t.png", pixels)
    x = torch.full((2, 3, 32, 32), 60 / 255)
    levels = {
        mode: (ImageFile(file=file, mode=mode, alpha=1.0)(x) * 255).round()[0, :, 0, 0].tolist()
        for mode in ("add", "blend", "overwrite", "nonzero")
    }
    assert levels["add"] == [255, 60, 160]
    assert levels["blend"] == levels["overwrite"] == [200, 0, 100]
    assert levels["nonzero"] == [200, 60, 100]  # green is zero: it stays
    half = ImageFile(file=file, mode="blend", alpha=0.5)(x)
    assert (half * 255).round()[0, :, 0, 0].tolist() == [130, 30, 80]
    assert torch.equal(ImageFile(file=file, mode="nonzero")(x)[:, :, 8:], x[:, :, 8:])


def test_image_mask_alpha_and_npy(tmp_path: Path) -> None:
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[:, 4:, 3] = 0
    x = torch.zeros(1, 3, 32, 32)
    y = ImageFile(file=saved(tmp_path / "a.png", rgba), mode="overwrite")(x)
    assert y[..., :16].min() == 1
    assert y[..., 16:].max() == 0
    mask = np.zeros((32, 32), np.uint8)
    mask[:2] = 255
    white = saved(tmp_path / "w.png", np.full((32, 32, 3), 255, np.uint8))
    trigger = ImageFile(file=white, mask=saved(tmp_path / "m.png", mask), mode="overwrite")
    assert trigger(x).sum().item() == 2 * 32 * 3
    for seed in (0, 1):
        control = trigger.control(seed)
        assert control(x)[:, :, 2:].max() == 0
        assert not torch.equal(control(x), trigger(x))
    np.save(tmp_path / "p.npy", np.full((32, 32, 3), 51, np.uint8))
    added = ImageFile(file=str(tmp_path / "p.npy"), mode="add")(x)
    assert torch.equal(added, torch.full_like(x, 0.2))


@pytest.mark.parametrize(
    ("name", "content"), [("gone.png", None), ("text.png", b"no image"), ("x.npy", b"\x93NUMPYx")]
)
def test_unreadable_images(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ProbeError, match=name):
        ImageFile(file=str(tmp_path / name))


def test_image_digest(tmp_path: Path) -> None:
    file = saved(tmp_path / "t.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ProbeError, match="SHA-256"):
        ImageFile(file=file, sha256="00")


# ---- the base class and bad fields ---------------------------------------------------------------


def test_rounding() -> None:
    x = torch.tensor([0.5, 100.9995 / 255, 100.4 / 255])
    assert (quantised(x, "trunc") * 255).round().tolist() == [127, 101, 100]
    assert (quantised(x, "round") * 255).round().tolist() == [128, 101, 100]
    assert torch.equal(quantised(x, "none"), x)


def test_wrapping_is_the_cast_to_uint8() -> None:
    levels = np.array([-4.2, -0.5, 0.0, 254.9, 255.0, 256.0, 300.7])
    expected = levels.astype(np.int64).astype(np.uint8)
    assert (wrapped(torch.from_numpy(levels / 255)) * 255).round().tolist() == expected.tolist()


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 2, 32, 32)])
def test_calls_refuse_wrong_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        Square()(torch.zeros(shape))
    with pytest.raises(ValueError, match="images must be"):
        Square()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


BLOCK = Block(at=(0, 0), cells=((255,),))


@pytest.mark.parametrize(
    ("made", "fields", "message"),
    [
        (Square, {"size": 33}, "size is 33"),
        (Square, {"colour": "whit"}, 'did you mean "white"'),
        (Square, {"colour": (0, 0, 256)}, "colour is 256"),
        (Patch, {"blocks": ()}, "blocks is empty"),
        (Patch, {"blocks": (Block(at=(31, 31), cells=((1, 2),)),)}, "leaves the native size"),
        (Patch, {"blocks": (Block(at=(0, 0), cells=((1, 2), (3,))),)}, "equal length"),
        (Patch, {"blocks": (Block(at=(0, 0), cells=(((1, 2),),)),)}, "a cell is a number"),
        (Patch, {"blocks": (Block(at=(0, 0), cells=((-1,),)),)}, "a cell is -1"),
        (Patch, {"blocks": (Block(at=(0, 0), cells=((None,),)),)}, "every cell is transparent"),
        (Patch, {"blocks": (BLOCK,), "alpha": float("nan")}, "alpha is nan"),
        (Patch, {"blocks": (BLOCK,), "overflow": "wrap"}, 'needs mode "add"'),
        (RandomPatch, {"seed": 0, "native": 2}, "native is 2"),
        (Blend, {"alpha": 1.5}, "alpha is 1.5"),
        (Columns, {"values": ()}, "values is empty"),
        (Columns, {"values": (256,)}, "a column is 256"),
        (Noise, {"amplitude": -1}, "amplitude is -1"),
        (Sinusoid, {"frequency": 0}, "frequency is 0"),
        (Warp, {"points": 1}, "points is 1"),
        (GridWarp, {"shape": (1, 2, 4, 4), "noise": "?"}, "not base64"),
        (GridWarp, {"shape": (1, 2, 4, 4), "noise": "AAAA"}, "another count"),
        (GridWarp, {"shape": (1, 3, 4, 4), "noise": ""}, "shape is"),
        (Quantise, {"levels": 1}, "levels is 1"),
        (Frequency, {"positions": ((40, 0),)}, "a position is 40"),
        (Frequency, {"positions": ()}, "positions is empty"),
        (Rotate, {"degrees": 200}, "degrees is 200"),
        (Curve, {"gamma": (0, 1, 1)}, "gamma is 0"),
        (ColourMatrix, {"offset": (0, 0, 99)}, "coefficient is 99"),
        (Compose, {"parts": ()}, "parts is empty"),
    ],
)
def test_bad_fields_are_named(made: type[Trigger], fields: dict, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        made(**fields)


def test_triggers_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Square().size = 4
    assert auditor.triggers.TRIGGERS["square"] is Square


def test_rearrangements_visit_every_order_once() -> None:
    patch = Patch(blocks=(Block(at=(0, 0), cells=((0, 0, 255), (0, 255, 0), (255, 0, 255))),))
    orders = {patch.control(seed) for seed in range(0, 250, 2)}
    assert len(orders) == 125
    assert patch not in orders


def test_what_is_composed_is_no_better_than_its_parts() -> None:
    turned, plain = Rotate(degrees=16), Square()
    both = Compose(parts=(plain, turned))
    assert (both.keeps_meaning, both.needs_structure) == (False, True)
    alone = Compose(parts=(plain,))
    assert (alone.keeps_meaning, alone.needs_structure) == (True, False)


def test_frequencies_without_others_have_no_control() -> None:
    whole = Frequency(positions=((0, 0), (0, 1), (1, 0)))
    with pytest.raises(ProbeError, match="leave no coefficient"):
        whole.control(0)


def test_no_warp_is_read_from_an_empty_grid() -> None:
    for shape in ((1, 2, 0, 0), (1, 0, 2, 2)):
        found = {"noise_grid": torch.zeros(shape), "identity_grid": torch.zeros(1)}
        assert GridWarp.from_checkpoint(found) is None
