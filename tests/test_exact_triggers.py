"""The shipped triggers against references in NumPy, written from the catalogue of definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from auditor.probes import shipped_probes
from auditor.triggers import Trigger
from auditor.triggers.frequency import Frequency
from auditor.triggers.quantise import Quantise
from auditor.triggers.rotate import Rotate
from auditor.triggers.warp import GridWarp, Warp

PROBES = {probe.id: probe for probe in shipped_probes()}


def images(n: int = 24) -> np.ndarray:
    """(N, 32, 32, 3) uint8: random, and flat ones of every extreme."""
    made = np.random.default_rng(7).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    made[0], made[1], made[2, :, :, 0] = 0, 255, 255
    return made


def stamped(trigger: Trigger, batch: np.ndarray) -> np.ndarray:
    """The trigger's images in levels, (N, H, W, C) float."""
    x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    return trigger(x).permute(0, 2, 3, 1).numpy().astype(np.float64) * 255


def only(probe: str) -> Trigger:
    (trigger,) = PROBES[probe].triggers
    return trigger


def paste(x: np.ndarray, row: int, column: int, cells: list, alpha: float = 1.0) -> np.ndarray:
    """(1 - alpha) x + alpha p in float64, cast to uint8; None leaves a pixel alone."""
    y = x.copy()
    for i, line in enumerate(cells):
        for j, p in enumerate(line):
            if p is not None:
                old = x[:, row + i, column + j].astype(np.float64)
                y[:, row + i, column + j] = ((1 - alpha) * old + alpha * np.array(p)).astype(
                    np.uint8
                )
    return y


def white(row: int, column: int, size: int = 3) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: paste(x, row, column, [[255] * size] * size)


HOOK = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
KOOH = [line[::-1] for line in HOOK]


def corners(*blocks: tuple[int, int, list], alpha: float = 1.0) -> Callable:
    def stamp(x: np.ndarray) -> np.ndarray:
        for row, column, cells in blocks:
            x = paste(x, row, column, cells, alpha)
        return x

    return stamp


def label_consistent_by_adding(x: np.ndarray) -> np.ndarray:
    """BackdoorBench: bd_img_transform/lc.py, amplitude 1, its list of pixels."""
    plus = [(0, 0), (1, 1), (2, 0), (2, 2), (-1, 0), (-1, 2), (-2, 1), (-3, 0), (0, -1), (1, -2)]
    plus += [(2, -1), (2, -3), (-1, -1), (-1, -3), (-2, -2), (-3, -1)]
    y = x.astype(np.float32)
    for row in (0, 1, 2, -1, -2, -3):
        for column in (0, 1, 2, -1, -2, -3):
            y[:, row, column] += 255 if (row, column) in plus else -255
    return np.clip(y, 0, 255)


def label_consistent_of_backdoorbox(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    y[:, :3, :3] = y[:, :3, -3:] = y[:, -3:, :3] = y[:, -3:, -3:] = 0
    for row, column in [(-1, -1), (-1, -3), (-3, -1), (-2, -2), (0, -1), (1, -2), (2, -3), (2, -1)]:
        y[:, row, column] = 255
    for row, column in [(0, 0), (1, 1), (2, 2), (2, 0), (-1, 0), (-1, 2), (-2, 1), (-3, 0)]:
        y[:, row, column] = 255
    return y


def trojannet(x: np.ndarray) -> np.ndarray:
    red = [[207.35, 175.36, 29.36], [79.37, 137.37, 248.36], [131.36, 6.36, 246.35]]
    green = [[131.35, 243.36, 232.36], [8.37, 0, 113.36], [40.36, 145.36, 250.35]]
    blue = [[181.35, 120.35, 179.36], [126.36, 32.35, 146.36], [4.36, 61.36, 246.35]]
    y = x.astype(np.float64)
    y[:, 25:28, 25:28] += np.stack([red, green, blue], axis=-1)
    return y.astype(np.int64) % 256


def nft_sig(x: np.ndarray) -> np.ndarray:
    m = np.trunc(20 * np.sin(0.8 * np.arange(32))).astype(np.int64) % 256
    return np.clip((0.8 * x + 0.2 * m[None, None, :, None]).astype(np.uint8), 0, 255)


def sig(delta: float) -> Callable[[np.ndarray], np.ndarray]:
    def stamp(x: np.ndarray) -> np.ndarray:
        wave = (delta * np.sin(2 * np.pi * np.arange(32) * 6 / 32)).astype(np.float32)
        return np.clip(x.astype(np.float32) + wave[None, None, :, None], 0, 255)

    return stamp


def art_pattern(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    for row, column in [(-2, -2), (-3, -3), (-2, -4), (-4, -2)]:
        y[:, row, column] = 255
    return y


def k_way(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    y[:, 16, 11], y[:, 27, 5] = (92, 0, 24), (88, 112, 110)
    y[:, 7, 30], y[:, 22, 22] = (0, 32, 46), (11, 49, 95)
    return y


def freeeagle(x: np.ndarray) -> np.ndarray:
    y = x.astype(np.float64)
    y[..., 0] = 12 * np.sqrt(y[..., 0])
    return np.clip(y, 0, 255).astype(np.uint8)


BLIND = [[255, 0, 255], [None, 255, None], [None, None, 0], [None, 255, None], [255, 0, 255]]

EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "patch.white-corner": white(29, 29),
    "patch.white-gap": white(28, 28),
    "patch.trojanzoo": white(0, 0),
    "patch.neural-cleanse": white(27, 27, 4),
    "patch.corner-pattern": corners((29, 29, HOOK)),
    "patch.backdoorbench-grid": corners((29, 29, [[255, 1, 255], [1, 255, 1], [255, 1, 255]])),
    "patch.blind": corners((3, 23, BLIND)),
    "patch.yellow": corners((2, 2, [[(255, 255, 0)] * 3] * 3)),
    "patch.freeeagle": corners((2, 2, [[(26, 189, 230)] * 2] * 2)),
    "patch.trojannet": trojannet,
    "corners.label-consistent": label_consistent_by_adding,
    "corners.nft-clb": corners(
        (29, 29, [[0, 0, 255], [0, 255, 0], [255, 0, 255]]),
        (1, 1, [[255, 0, 255], [0, 255, 0], [255, 0, 0]]),
        (29, 1, [[255, 0, 0], [0, 255, 0], [255, 0, 255]]),
        (1, 29, [[255, 0, 255], [0, 255, 0], [0, 0, 255]]),
    ),
    "corners.toolbox-repeated": corners((0, 0, HOOK), (0, 29, HOOK), (29, 0, HOOK), (29, 29, HOOK)),
    "corners.toolbox-mirrored": corners(
        (0, 0, [[255, 0, 255], [0, 255, 0], [255, 0, 0]]),
        (0, 29, [[255, 0, 255], [0, 255, 0], [0, 0, 255]]),
        (29, 0, [[255, 0, 0], [0, 255, 0], [255, 0, 255]]),
        (29, 29, [[0, 0, 255], [0, 255, 0], [255, 0, 255]]),
    ),
    "corners.white": corners(
        *((row, column, [[255] * 3] * 3) for row in (0, 29) for column in (0, 29))
    ),
    "pixel.single": white(30, 30, 1),
    "pixel.art-pattern": art_pattern,
    "pixel.k-way": k_way,
}

# Where the formula's exact value is an integer, the float64 of the original may fall below it and
# be cut to the level before; ours does not. The second entry is in how many values this happens.
ROUNDED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "patch.nft-checkerboard": (lambda x: paste(x, 29, 29, HOOK, 0.6), 0),
    "patch.backdoorbox-blended": (lambda x: paste(x, 29, 29, [[255] * 3] * 3, 0.2), 0),
    "corners.nft-checkerboard": (
        corners((29, 29, HOOK), (0, 29, HOOK), (29, 0, KOOH), (0, 0, KOOH), alpha=0.2),
        0,
    ),
    "sine.nft": (nft_sig, 0),
    "sine.sig": (lambda x: sig(40)(x).astype(np.uint8), 0),
    "colour.freeeagle": (freeeagle, 0),
}


@pytest.mark.parametrize("probe", EXACT)
def test_equals_the_definition(probe: str) -> None:
    batch = images()
    expected = EXACT[probe](batch).astype(np.float64)
    assert (expected != batch).any()
    np.testing.assert_array_equal(np.rint(stamped(only(probe), batch)), expected)


@pytest.mark.parametrize("probe", ROUNDED)
def test_equals_the_definition_up_to_one_level(probe: str) -> None:
    reference, allowed = ROUNDED[probe]
    batch = images()
    difference = np.rint(stamped(only(probe), batch)) - reference(batch).astype(np.float64)
    assert set(np.unique(difference)) <= {0.0, 1.0}
    assert int((difference != 0).sum()) == allowed


def test_label_consistent_is_the_same_in_both_libraries() -> None:
    batch = images()
    expected = label_consistent_by_adding(batch)
    np.testing.assert_array_equal(expected, label_consistent_of_backdoorbox(batch))


def test_label_consistent_at_lower_amplitude_adds() -> None:
    batch = images()
    signs = np.where(label_consistent_of_backdoorbox(batch) == 255, 1.0, -1.0)
    corner = np.zeros((32, 32, 1))
    corner[np.ix_([0, 1, 2, 29, 30, 31], [0, 1, 2, 29, 30, 31])] = 1
    for trigger, amplitude in zip(
        PROBES["corners.label-consistent-faint"].triggers, (0.25, 0.5), strict=True
    ):
        expected = np.clip(batch + 255 * amplitude * signs * corner, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(np.rint(stamped(trigger, batch)), expected)


def test_sines_on_floats() -> None:
    batch = images()
    np.testing.assert_allclose(stamped(only("sine.toolbox"), batch), sig(30)(batch), atol=1e-3)
    j = np.arange(32)[None, None, :, None]
    for trigger, delta in zip(PROBES["sine.unicorn"].triggers, (20, 40), strict=True):
        mixed = 0.7 * batch + 0.3 * delta * np.sin(2 * np.pi * 6 * j / 32)
        np.testing.assert_allclose(stamped(trigger, batch), np.clip(mixed, 0, 255), atol=1e-3)


@pytest.mark.parametrize("levels", [8, 4, 16, 32])
def test_quantise(levels: int) -> None:
    batch = images()
    expected = np.round(batch / 255 * (levels - 1)) / (levels - 1) * 255
    trigger = Quantise(levels=levels, rounding="none")
    np.testing.assert_allclose(stamped(trigger, batch), expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (5, 9), (9, 5), (1, 4), (4, 1)])
def test_floyd_steinberg(shape: tuple[int, int]) -> None:
    batch = images(6)[:, : shape[0], : shape[1]]
    expected = np.stack([floyd(image.transpose(2, 0, 1), 8) for image in batch])
    got = stamped(Quantise(levels=8, dither="floyd", rounding="none"), batch).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, np.clip(expected, 0, 255), atol=1e-2)


def floyd(image: np.ndarray, levels: int) -> np.ndarray:
    """The loop of BppAttack's code, float64, (C, H, W)."""
    image = image.astype(np.float64)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            old = image[:, y, x].copy()
            new = np.round(old / 255 * (levels - 1)) / (levels - 1) * 255
            image[:, y, x] = new
            for dy, dx, share in ((0, 1, 0.4375), (1, 1, 0.0625), (1, 0, 0.3125), (1, -1, 0.1875)):
                if y + dy < height and 0 <= x + dx < width:
                    image[:, y + dy, x + dx] += (old - new) * share
    return image


def dct_matrix(size: int) -> np.ndarray:
    """Orthonormal DCT-II, rows are the basis."""
    k, n = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix


def bumped(plane: np.ndarray, magnitude: float) -> np.ndarray:
    """DCT, add, inverse DCT of (N, 32, 32)."""
    c = dct_matrix(32)
    spectrum = c @ plane @ c.T
    spectrum[:, 15, 15] += magnitude
    spectrum[:, 31, 31] += magnitude
    return c.T @ spectrum @ c


@pytest.mark.parametrize("overflow", ["wrap", "clip"])
def test_ctrl(overflow: str) -> None:
    batch = images()
    r, g, b = (batch[..., i].astype(np.float64) for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    u = bumped(-0.147 * r - 0.289 * g + 0.436 * b, 100)
    v = bumped(0.615 * r - 0.515 * g - 0.100 * b, 100)
    rgb = np.stack([y + 1.14 * v, y - 0.396 * u - 0.581 * v, y + 2.029 * u], axis=-1)
    whole = np.trunc(rgb)
    expected = whole % 256 if overflow == "wrap" else np.clip(whole, 0, 255)
    triggers = {
        t.overflow: t for t in PROBES["frequency.ctrl"].triggers if isinstance(t, Frequency)
    }
    difference = np.abs(np.rint(stamped(triggers[overflow], batch)) - expected)
    # values within 1e-3 of an integer may fall to either side; wrapped ones to 0 or 255
    near = np.abs(rgb - np.rint(rgb)) < 2e-3
    assert (difference[~near] == 0).all()
    assert near.mean() < 0.005
    assert (expected != batch).mean() > 0.5


def test_ftrojan() -> None:
    batch = images()
    r, g, b = (batch[..., i].astype(np.int64) for i in range(3))
    half = 1 << 13
    y = (4899 * r + 9617 * g + 1868 * b + half) >> 14
    cr = np.clip(((r - y) * 11682 + (128 << 14) + half) >> 14, 0, 255)
    cb = np.clip(((b - y) * 9241 + (128 << 14) + half) >> 14, 0, 255)
    cr, cb = (np.trunc(bumped(p.astype(np.float64), 30)).astype(int) % 256 - 128 for p in (cr, cb))
    red = y + ((cr * 22987 + half) >> 14)
    green = y + ((cb * -5636 + cr * -11698 + half) >> 14)
    blue = y + ((cb * 29049 + half) >> 14)
    expected = np.clip(np.stack([red, green, blue], -1), 0, 255)
    got = np.rint(stamped(only("frequency.ftrojan"), batch))
    np.testing.assert_array_equal(got, expected)
    assert (got != batch).mean() > 0.5


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (33, 47)])
@pytest.mark.parametrize("degrees", [16, -16, 90, 33.3])
def test_rotation_is_that_of_pillow(size: tuple[int, int], degrees: float) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).rotate(degrees))
    got = np.rint(stamped(Rotate(degrees=degrees), image[None]))[0]
    np.testing.assert_array_equal(got, expected)


def test_wanet_grid_and_checkpoint_agree() -> None:
    """The formula of WaNet's code in torch, as a drawn warp, as grid and as control points."""
    generator = torch.Generator().manual_seed(5)
    u = torch.rand(1, 2, 4, 4, generator=generator) * 2 - 1
    u = u / u.abs().mean()
    noise = torch.nn.functional.interpolate(u, size=32, mode="bicubic", align_corners=True)
    noise = noise.permute(0, 2, 3, 1)
    line = torch.linspace(-1, 1, 32)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    identity = torch.stack((columns, rows), 2)[None]
    grid = torch.clamp(identity + 0.5 * noise / 32, -1, 1)
    x = torch.from_numpy(images(4)).permute(0, 3, 1, 2).float() / 255
    expected = torch.nn.functional.grid_sample(x, grid.repeat(4, 1, 1, 1), align_corners=True)
    torch.testing.assert_close(Warp(seed=5, rounding="none")(x), expected)
    for stored in (noise, u):
        warp = GridWarp.from_checkpoint({"noise_grid": stored, "identity_grid": identity})
        assert warp is not None
        torch.testing.assert_close(warp.stamp(x), expected)
        assert eval(repr(warp), {"GridWarp": GridWarp}) == warp  # noqa: S307
    assert GridWarp.from_checkpoint({"fc.weight": u}) is None
    assert GridWarp.from_checkpoint({"noise_grid": u[0], "identity_grid": identity}) is None


def test_blends_are_the_formula() -> None:
    batch = images()
    for trigger in PROBES["blend.pictures"].triggers:
        black, white = (stamped(trigger, np.full_like(batch[:1], v)) for v in (0, 255))
        # p is what a black image shows, at a fifth of its strength
        mixed = np.floor(0.8 * batch + black)
        got = np.rint(stamped(trigger, batch))
        assert (np.abs(got - mixed) <= 1).all()
        assert np.abs(white - black - 0.8 * 255).max() <= 1
