"""Probe files: the shipped ones, bad ones, and what a specification chooses."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from auditor.errors import ProbeError, UnknownName
from auditor.probes import (
    TIERS,
    Probe,
    choose,
    from_image,
    load_probe,
    load_probes,
    select,
    shipped_probes,
)
from auditor.resources import resource_dir
from auditor.triggers.compose import Compose
from auditor.triggers.image import ImageFile
from auditor.triggers.patch import Patch, Square

GOOD = """\
schema: auditor.probe/1
id: mine
title: Mine
kind: square
tier: quick
tags: [patch]
exactness: R
what: A square.
why: To test.
known_problems: None known.
references:
  - https://example.org/paper
trigger:
  colour: red
grid:
  size: [3, 4]
  where: [top-left, bottom-right]
"""


def written(folder: Path, text: str = GOOD, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def names(probes: tuple[Probe, ...]) -> set[str]:
    return {probe.id for probe in probes}


# ---- the shipped ones ----------------------------------------------------------------------------


@pytest.mark.parametrize("probe", shipped_probes(), ids=lambda probe: probe.id)
def test_shipped_probes_are_documented(probe: Probe) -> None:
    assert (resource_dir("probes") / f"{probe.id}.yaml").is_file()
    assert re.fullmatch(r"[a-z0-9]+\.[a-z0-9]+(-[a-z0-9]+)*", probe.id)
    assert probe.references
    assert all(url.startswith("https://") for url in probe.references)
    for text in (probe.title, probe.what, probe.why, probe.known_problems):
        assert text == text.strip()
        assert len(text) >= 5
        assert "\n" not in text
    assert probe.what.endswith(".")
    assert probe.why.endswith(".")
    assert probe.known_problems.endswith(".")
    assert len(probe.title) <= 60
    assert probe.tags
    assert probe.triggers
    assert probe.library or probe.exactness in ("R", "D")
    facts = probe.facts()
    assert (facts.id, facts.triggers) == (probe.id, len(probe.triggers))


def test_tiers_grow_and_keep_their_cost() -> None:
    counts = [sum(len(probe.triggers) for probe in select(tier)) for tier in TIERS]
    assert 25 <= counts[0] <= 32
    assert 90 <= counts[1] <= 120
    assert counts[2] > counts[1]
    assert names(select("quick")) < names(select("standard")) < names(select("deep"))
    assert select("deep") == shipped_probes()


# ---- reading -------------------------------------------------------------------------------------


def test_grid_is_the_product(tmp_path: Path) -> None:
    probe = load_probe(written(tmp_path))
    assert probe.triggers == tuple(
        Square(size=size, where=where, colour="red")
        for size in (3, 4)
        for where in ("top-left", "bottom-right")
    )


def test_no_grid_is_one_trigger(tmp_path: Path) -> None:
    assert load_probe(written(tmp_path, GOOD.split("grid:")[0])).triggers == (Square(colour="red"),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("auditor.probe/1", "auditor.probe/2", "schema: 'auditor.probe/2' is not"),
        ("id: mine", "id: other", "id: 'other' must be the name of the file, 'mine'"),
        ("title: Mine\n", "", "title: missing"),
        ("what: A square.", "what: ''", "what: empty"),
        ("why: To", "whi: To", 'whi: no such key; did you mean "why"'),
        ("trigger:", "triger:", 'triger: no such key; did you mean "trigger"'),
        ("kind: square", "kind: sqare", 'no trigger kind is named "sqare"; did you mean "square"'),
        ("tier: quick", "tier: quik", "tier: 'quik': .*did you mean \"quick\""),
        ("exactness: R", "exactness: Z", "exactness: 'Z'"),
        ("tags: [patch]", "tags: patch", "tags: 'patch': Expected `array`"),
        ("https://example", "http://example", "'http://example.org/paper' is not an https"),
        ("colour: red", "color: red", 'trigger.color: no such key; did you mean "colour"'),
        ("colour: red", "colour: redd", 'no colour is named "redd"; did you mean "red"'),
        ("colour: red", "size: 5", "grid.size: is also fixed"),
        ("size: [3, 4]", "size: 3", "grid.size: must be a list"),
        ("size: [3, 4]", "size: []", "grid.size: must be a list"),
        ("size: [3, 4]", "size: [3, big]", "trigger.size: 'big': Expected `int`"),
        ("size: [3, 4]", "size: [3, 3]", "the same trigger more than once"),
        ("size: [3, 4]", "size: [3, 40]", "size is 40; it must lie between 1 and 32"),
        ("top-left", "topleft", 'did you mean "top-left"'),
        ("trigger:\n  colour: red", "trigger: red", "trigger: must be a mapping"),
    ],
)
def test_bad_probes_say_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ProbeError, match=message) as raised:
        load_probe(written(tmp_path, GOOD.replace(old, new)))
    assert "mine.yaml" in str(raised.value)


def test_all_errors_come_in_one_message(tmp_path: Path) -> None:
    text = GOOD.replace("what: A square.", "what: 7").replace("tier: quick", "tier: quik")
    text = text.replace("colour: red", "colour: red\n  color: red\n  alpha: no")
    with pytest.raises(ProbeError) as raised:
        load_probe(written(tmp_path, text))
    for part in (
        "what: 7: Expected `str`",
        "tier: 'quik'",
        "trigger.color",
        "trigger.alpha: False",
    ):
        assert part in str(raised.value)
        assert str(raised.value).count(part) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a probe is a mapping"),
        ("- a\n- b\n", "a probe is a mapping"),
        ("a: [1", "is not YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("a: &x [1, 1]\nb: [*x, *x]\n", "aliases"),
        ("a: " + "[" * 200_000, "nested deeper than 32"),
        ("a:\n  " + "- " * 100_000, "nested deeper than 32"),
        ("a: '" + "x" * 300_000 + "'", "larger than 256 kB"),
    ],
)
def test_hostile_yaml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        load_probe(written(tmp_path, text))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="gone"):
        load_probe(tmp_path / "gone.yaml")
    with pytest.raises(ProbeError, match="holds no probe"):
        load_probes(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ProbeError, match="cannot read"):
        load_probe(tmp_path / "binary.yaml")


def test_too_large_a_grid(tmp_path: Path) -> None:
    text = GOOD.replace("size: [3, 4]", f"size: {list(range(1, 33))}\n  gap: {list(range(200))}")
    with pytest.raises(ProbeError, match="makes 12800 triggers"):
        load_probe(written(tmp_path, text))


FILE = GOOD.split("trigger:")[0].replace("square", "image") + "trigger:\n  mode: blend\n"


def test_files_are_relative_to_the_probe(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "t.png")
    (trigger,) = load_probe(written(tmp_path, FILE + "  file: t.png\n")).triggers
    assert isinstance(trigger, ImageFile)
    assert trigger.file == str(tmp_path / "t.png")
    assert torch.equal(trigger(torch.zeros(1, 3, 8, 8))[0, :, 0, 0], torch.tensor([1.0, 0, 0]))


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../t.png", "a/../../t.png", "https://x.org/t.png", "C:\\t.png", "''"]
)
def test_files_elsewhere_are_refused(tmp_path: Path, file: str) -> None:
    inner = tmp_path / "probes"
    inner.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "t.png")
    with pytest.raises(ProbeError, match=r"trigger\.file: .*below the folder") as raised:
        load_probe(written(inner, FILE + f"  file: {file}\n"))
    assert "cannot read" not in str(raised.value)  # it has not even been tried


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    inner = tmp_path / "probes"
    inner.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "t.png")
    (inner / "t.png").symlink_to(tmp_path / "t.png")
    with pytest.raises(ProbeError, match="links out of the folder"):
        load_probe(written(inner, FILE + "  file: t.png\n"))


def test_missing_file_of_a_probe(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"mine\.yaml:\n.*no such image"):
        load_probe(written(tmp_path, FILE + "  file: gone.png\n"))


PARTS = GOOD.split("trigger:")[0].replace("square", "compose") + "trigger:\n  parts:\n"


def test_compose_has_parts_with_kinds(tmp_path: Path) -> None:
    text = PARTS + "    - {kind: square, size: 4}\n    - {kind: sinusoid, delta: 20}\n"
    (trigger,) = load_probe(written(tmp_path, text)).triggers
    assert isinstance(trigger, Compose)
    assert trigger.parts[0] == Square(size=4)
    with pytest.raises(ProbeError, match='no such key; did you mean "size"'):
        load_probe(written(tmp_path, PARTS + "    - {kind: square, sise: 4}\n"))
    with pytest.raises(ProbeError, match="parts is empty"):
        load_probe(written(tmp_path, PARTS.replace("parts:", "parts: []")))
    with pytest.raises(ProbeError, match="must be a list of mappings"):
        load_probe(written(tmp_path, PARTS.replace("parts:", "parts: 3")))


# ---- choosing ------------------------------------------------------------------------------------


def test_select_tags_patterns_and_removals() -> None:
    warps = {probe.id for probe in shipped_probes() if probe.kind == "warp"}
    assert names(select("warp.*")) == warps
    assert names(select("tag:warp")) == warps
    assert names(select("deep,-warp.*")) == names(shipped_probes()) - warps
    assert names(select("-warp.*,deep")) == names(select("deep,-warp.*"))
    assert names(select("-tag:warp")) == names(select("standard")) - warps
    assert names(select(["quick", "-quick", "warp.wanet-many"])) == {"warp.wanet-many"}
    assert [p.id for p in select("sine.sig, blend.more,sine.sig")] == ["sine.sig", "blend.more"]


def test_select_files_and_folders(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert names(select(str(path))) == {"mine"}
    assert names(select(f"{tmp_path}/,sine.sig")) == {"mine", "sine.sig"}
    assert names(select(f"{path},quick,-mine")) == names(select("quick"))
    taken = written(tmp_path, GOOD.replace("id: mine", "id: sine.sig"), "sine.sig.yaml")
    with pytest.raises(ProbeError, match=r'another probe with the id "sine\.sig"'):
        select(f"quick,{taken}")


def test_endings_in_capitals(tmp_path: Path) -> None:
    path = written(tmp_path, name="mine.YAML")
    assert names(select(f"{path},quick,-mine")) == names(select("quick"))
    assert [probe.id for probe in load_probes(tmp_path)] == ["mine"]


def test_choose_extras() -> None:
    extras = {"search.margin": "quick", "search.inversion": "standard"}
    assert choose("quick", extras=extras).extras == ("search.margin",)
    assert choose("standard", extras=extras).extras == tuple(extras)
    assert choose("search.*", extras=extras) == ((), tuple(extras))
    chosen = choose("quick,-search.margin", extras=extras)
    assert chosen.extras == ()
    assert chosen.probes == select("quick")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("quik", 'named "quik"; did you mean "quick"'),
        ("sine.sg", 'did you mean "sine.sig"'),
        ("tag:warps", 'tag "warps"; did you mean "warp"'),
        ("quick,-wrap.*", r'named "wrap\.\*"'),
        ("search.margin", "no probe"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        select(spec)


def test_select_from_other_probes(tmp_path: Path) -> None:
    mine = load_probe(written(tmp_path))
    assert select("standard", (mine,)) == (mine,)
    assert select("", (mine,)) == (mine,)
    with pytest.raises(UnknownName):
        select("sine.sig", (mine,))


# ---- the user's image ----------------------------------------------------------------------------


def picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_from_image_without_hints_tries_the_usual_ways(tmp_path: Path) -> None:
    probe = from_image(picture(tmp_path / "Hello Kitty!.png", np.full((64, 48, 3), 99)))
    assert probe.id == "user.hello-kitty"
    modes = [(t.mode, t.alpha) for t in probe.triggers if isinstance(t, ImageFile)]
    assert modes[:4] == [("add", 1.0), ("blend", 0.1), ("blend", 0.2), ("blend", 0.5)]
    assert modes[4:] == [("paste", 1.0)] * 5
    x = torch.zeros(2, 3, 32, 32)
    assert all(trigger(x).shape == x.shape for trigger in probe.triggers[:4])
    for trigger in probe.triggers[4:]:  # it is no sticker on images as small as that
        with pytest.raises(
            ProbeError, match="a picture of 64×48 is pasted into images of 128×96 or"
        ):
            trigger(x)


@pytest.mark.parametrize("transparent", [False, True])
def test_from_image_may_be_a_sticker(transparent: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (20, 24, 3))
    if transparent:
        opaque = np.full((20, 24, 1), 255)
        opaque[0] = 0
        pixels = np.concatenate([pixels, opaque], 2)
    probe = from_image(picture(tmp_path / "s.png", pixels))
    pasted = {t.where: t for t in probe.triggers if isinstance(t, ImageFile) and t.mode == "paste"}
    x = torch.full((2, 3, 96, 80), 0.4)
    sticker = torch.from_numpy(pixels[:, :, :3] / 255).permute(2, 0, 1).float()
    top = int(transparent)
    for where, rows, columns in (
        ("bottom-right", slice(76, 96), slice(56, 80)),
        ("top-left", slice(0, 20), slice(0, 24)),
        ("centre", slice(38, 58), slice(28, 52)),
    ):
        stamped = pasted[where](x)
        place = stamped[:, :, rows, columns]
        assert torch.allclose(place[:, :, top:], sticker[:, top:].expand(2, -1, -1, -1), atol=1e-6)
        assert torch.equal(place[:, :, :top], x[:, :, :top, :24])
        assert int((stamped != x).any(1).sum()) == 2 * (20 - top) * 24
        control = pasted[where].control(0)(x)
        assert int((control != x).any(1).sum()) == 2 * (20 - top) * 24
        assert not torch.equal(control, stamped)


def test_from_image_on_a_black_canvas_is_a_patch(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3))
    pixels[29:, 29:] = 255
    first = from_image(picture(tmp_path / "t.png", pixels)).triggers[0]
    x = torch.full((1, 3, 32, 32), 0.4)
    assert torch.equal(first(x), Square()(x))


def test_from_small_image_goes_into_and_near_the_corners(tmp_path: Path) -> None:
    probe = from_image(picture(tmp_path / "t.png", np.full((3, 2, 3), 255)))
    assert probe.kind == "patch"
    x = torch.full((1, 3, 32, 40), 0.4)
    places = set()
    for trigger in probe.triggers:
        rows, columns = (trigger(x)[0, 0] == 1).nonzero().T
        assert (len(rows.unique()), len(columns.unique()), len(rows)) == (3, 2, 6)
        places.add((int(rows[0]), int(columns[0])))
    edges = [
        (row, column) for gap in range(4) for row in (gap, 29 - gap) for column in (gap, 38 - gap)
    ]
    assert places == {*edges, (14, 19)}
    assert len(probe.triggers) == len(places)
    first = [
        (int(p[0]), int(p[1])) for t in probe.triggers[:4] for p in [(t(x)[0, 0] == 1).nonzero()[0]]
    ]
    assert first == [(29, 38), (0, 0), (29, 0), (0, 38)]  # what --trigger-number counts by
    assert all(isinstance(trigger, Patch) for trigger in probe.triggers[:-1])
    large = torch.full((1, 3, 224, 224), 0.4)
    square = from_image(picture(tmp_path / "s.png", np.full((3, 3, 3), 255)))
    assert torch.equal(square.triggers[0](large), Square(resize="keep")(large))


def test_a_small_transparent_image_goes_near_the_corners_too(tmp_path: Path) -> None:
    cross = np.dstack([np.full((3, 3, 3), 255), 255 * np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])])
    probe = from_image(picture(tmp_path / "t.png", cross))
    x = torch.full((1, 3, 32, 40), 0.4)
    pasted = [t for t in probe.triggers if isinstance(t, ImageFile) and t.mode == "paste"]
    centres = set()
    for trigger in pasted:
        points = (trigger(x)[0, 0] == 1).nonzero()
        assert len(points) == 5
        centres.add((int(points[2, 0]), int(points[2, 1])))
    near = {(row, col) for gap in range(1, 5) for row in (gap, 31 - gap) for col in (gap, 39 - gap)}
    assert centres == {*near, (15, 19)}
    assert len(pasted) == len(centres)
    with pytest.raises(ProbeError, match="gap"):
        ImageFile(file=str(tmp_path / "t.png"), mode="paste", gap=-1)
    with pytest.raises(ProbeError, match="a picture of 3×3 does not fit 4 pixels from the border"):
        ImageFile(file=str(tmp_path / "t.png"), mode="paste", gap=4)(torch.zeros(1, 3, 6, 6))


def test_from_image_with_mask_or_transparency_overwrites(tmp_path: Path) -> None:
    white = np.full((32, 32, 3), 255)
    mask = np.zeros((32, 32))
    mask[:3, :3] = 255
    x = torch.full((1, 3, 32, 32), 0.4)
    expected = Square(where="top-left")(x)
    masked = from_image(picture(tmp_path / "w.png", white), picture(tmp_path / "m.png", mask))
    transparent = from_image(picture(tmp_path / "a.png", np.dstack([white, mask])))
    for probe in (masked, transparent):
        assert torch.equal(probe.triggers[0](x), expected)
    assert len(masked.triggers) == 1


@pytest.mark.parametrize(
    ("levels", "said"),
    [(np.eye(32), "brightest pixel is 1 "), (np.dstack([255 * np.eye(32), *[np.zeros((32, 32))] * 2]), "is 85 ")],
)  # fmt: skip
def test_a_mask_that_selects_nothing_is_refused(
    levels: np.ndarray, said: str, tmp_path: Path
) -> None:
    white = picture(tmp_path / "w.png", np.full((32, 32, 3), 255))
    with pytest.raises(ProbeError, match=rf"m\.png selects no pixel: 128 of 255 .*{said}"):
        from_image(white, picture(tmp_path / "m.png", levels))


def test_a_mask_is_as_large_as_its_image_and_an_image_shows(tmp_path: Path) -> None:
    white = picture(tmp_path / "w.png", np.full((32, 32, 3), 255))
    with pytest.raises(ProbeError, match=r"has 32 x 32 pixels and .*m\.png 16 x 12: a mask is as"):
        from_image(white, picture(tmp_path / "m.png", np.full((12, 16), 255)))
    clear = picture(tmp_path / "c.png", np.dstack([np.full((32, 32, 3), 255), np.zeros((32, 32))]))
    with pytest.raises(ProbeError, match=r"c\.png is transparent everywhere"):
        from_image(clear)
    dot = np.zeros((64, 64))
    dot[1, 1] = 255
    large = picture(tmp_path / "l.png", np.full((64, 64, 3), 255))
    lost = from_image(large, picture(tmp_path / "d.png", dot)).triggers[0]
    with pytest.raises(ProbeError, match=r"l\.png stamps no pixel of an input of 16×16"):
        lost(torch.zeros(1, 3, 16, 16))


def test_a_trigger_picture_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 32, 32)
    first = from_image(picture(tmp_path / "t.png", np.full((16, 16, 3), 255))).triggers[-1](x)
    second = from_image(picture(tmp_path / "t.png", np.full((3, 3, 3), 255))).triggers[-1](x)
    assert (int(first[0, 0].sum()), int(second[0, 0].sum())) == (256, 9)


def test_from_unreadable_image(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_bytes(b"nothing")
    with pytest.raises(ProbeError, match=r"t\.png is no image that can be read"):
        from_image(tmp_path / "t.png")
    with pytest.raises(ProbeError, match="gone"):
        from_image(tmp_path / "gone.png")
