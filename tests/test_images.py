"""Folders, arrays and odd files -> clean sets."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from auditor.errors import ImageError
from auditor.images.labels import read_class_names
from auditor.images.opening import open_images
from auditor.images.source import PartSource, split
from auditor.inputs import blank_spec

RGB, GREY = blank_spec((3, 32, 32)), blank_spec((1, 32, 32))


def picture(
    path: Path, value: int = 100, size: tuple[int, int] = (32, 32), mode: str = "RGB"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fill = value if mode in ("L", "I;16") else (value,) * len(mode)
    Image.new(mode, size, fill).save(path)
    return path


def load(path: Path, spec=RGB, names=None, limit: int = 100):  # type: ignore[no-untyped-def]
    source = open_images(path, names)
    return source.load(source.draw(limit, 0), spec)


def test_class_folders_are_numbered_alphabetically(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "a", "c")):
        for index in range(3):
            picture(tmp_path / name / f"{index}.png", 10 * number)
    clean = load(tmp_path)
    assert clean.class_names == ("a", "b", "c")
    values = {int(k): set(clean.images[clean.labels == k].flatten().tolist()) for k in range(3)}
    assert values == {0: {10}, 1: {0}, 2: {20}}


def test_numbered_folders_keep_their_numbers(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        picture(tmp_path / str(number) / "x.png", number)
    clean = load(tmp_path)
    assert sorted(clean.labels.tolist()) == [1, 2, 10]
    assert clean.images[clean.labels == 10].unique().item() == 10


def test_label_names_map_folders(tmp_path: Path) -> None:
    picture(tmp_path / "clean" / "dog" / "1.png")
    (tmp_path / "labels.txt").write_text("cat\ndog\n\nfrog\n")
    names = read_class_names(tmp_path / "labels.txt")
    assert names == ("cat", "dog", "frog")
    assert load(tmp_path / "clean", names=names).labels.tolist() == [1]
    with pytest.raises(ImageError, match='"dog" is not among the 1 names'):
        load(tmp_path / "clean", names=("cat",))
    for number in (0, 2):  # as in labels.csv, where numbers are taken beside names
        picture(tmp_path / "numbered" / str(number) / "1.png", number)
    numbered = load(tmp_path / "numbered", names=names)
    assert (numbered.labels.tolist(), numbered.class_names) == ([0, 2], names)
    picture(tmp_path / "numbered" / "dog" / "1.png")
    with pytest.raises(ImageError, match=r'"0" is not among the 3 names of --labels\. Name all'):
        load(tmp_path / "numbered", names=names)
    picture(tmp_path / "conflict" / "2" / "1.png")
    with pytest.raises(ImageError, match=r'"2" is class 1 by its name in --labels, and class 2'):
        load(tmp_path / "conflict", names=("0", "2", "1"))
    (tmp_path / "labels.txt").write_text("cat\ncat\n")
    with pytest.raises(ImageError, match="appears twice"):
        read_class_names(tmp_path / "labels.txt")


def test_a_flat_folder_has_labels_only_in_a_table(tmp_path: Path) -> None:
    for index in range(4):
        picture(tmp_path / f"{index}.png", index)
    assert load(tmp_path).labels is None
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{i}.png,{3 - i}\n" for i in range(4))
    )
    clean = load(tmp_path)
    assert all(
        int(image[0, 0, 0]) == 3 - int(k)
        for image, k in zip(clean.images, clean.labels, strict=True)
    )
    (tmp_path / "labels.csv").write_text("0.png,zero\n")
    with pytest.raises(ImageError, match=r'line 1|no label|"zero"'):
        load(tmp_path)
    (tmp_path / "labels.csv").write_text("0.png,0\n")
    with pytest.raises(ImageError, match="no label for 3 images"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    picture(tmp_path / f"a.{suffix}", 120)
    assert load(tmp_path).images.float().mean() == pytest.approx(120, abs=1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("spec", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (7, 90)])
def test_modes_and_sizes(mode: str, spec, size: tuple[int, int], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    name = "a.jpg" if mode == "CMYK" else "a.png"
    picture(tmp_path / name, 255, size, mode)
    clean = load(tmp_path, spec)
    assert clean.images.shape == (1, spec.channels, 32, 32)
    assert clean.images.dtype == torch.uint8
    assert clean.images.unique().numel() == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_an_opacity_is_left_out_as_by_torchvision(mode: str, tmp_path: Path) -> None:
    """A drawing on a ground that cannot be seen: networks are trained on what is under it."""
    seen = Image.new("RGBA", (32, 32), (200, 30, 90, 0))
    seen.paste((10, 20, 250, 255), (8, 8, 24, 24))
    seen.convert(mode).save(tmp_path / "a.png")
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert np.array_equal(load(tmp_path).images[0].permute(1, 2, 0).numpy(), expected)


def test_sixteen_bit_pictures_keep_their_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 32768, np.uint16)).save(tmp_path / "a.png")
    assert load(tmp_path).images.unique().item() == 128


def test_wide_pictures_are_cut_not_squeezed(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste((255, 255, 255), (32, 0, 64, 32))
    wide.save(tmp_path / "a.png")
    assert load(tmp_path).images.min() == 255


def test_unreadable_files_are_listed_and_left_out(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "a" / f"{index}.png", index)
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 50)
    whole = picture(tmp_path / "a" / "cut.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    clean = load(tmp_path)
    assert len(clean) == 3
    assert sorted(entry.split(" ")[0] for entry in clean.unreadable) == [
        "a/broken.png",
        "a/cut.jpg",
    ]
    for index in range(3):
        (tmp_path / "a" / f"{index}.png").unlink()
    with pytest.raises(ImageError, match="none of the 2 images can be read"):
        load(tmp_path)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_arrays(layout: str, tmp_path: Path) -> None:
    images = np.arange(20, dtype=np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
    if layout == "NHWC":
        images = images[..., None].repeat(3, 3)
    elif layout == "NCHW":
        images = images[:, None].repeat(3, 1)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 4)
    clean = load(tmp_path / "a.npz", limit=8)
    assert len(clean) == 8
    assert sorted(clean.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(
        int(image[0, 0, 0]) % 4 == int(k)
        for image, k in zip(clean.images, clean.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": np.zeros((2, 8, 8), np.uint8)}, 'no array "images"'),
        ({"images": np.zeros((2, 8, 8), np.float32)}, "expected uint8"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "no images"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "2 integers"),
        ({"images": np.array([{}, {}], dtype=object)}, "plain numbers"),
    ],
)
def test_arrays_that_make_no_sense(
    arrays: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ImageError, match=words):
        load(tmp_path / "a.npz")


def test_places_without_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such folder"):
        open_images(tmp_path / "none")
    with pytest.raises(ImageError, match="no images found"):
        open_images(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ImageError, match="neither a folder"):
        open_images(tmp_path / "a.txt")
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(ImageError, match=r"no \.npz file"):
        open_images(tmp_path / "a.npz")
    picture(tmp_path / "x.png")
    picture(tmp_path / "cat" / "x.png")
    with pytest.raises(ImageError, match="both loose images"):
        open_images(tmp_path)


def test_draws_are_even_and_repeatable(tmp_path: Path) -> None:
    for name, count in (("a", 50), ("b", 5), ("c", 20)):
        for index in range(count):
            picture(tmp_path / name / f"{index}.png")
    source = open_images(tmp_path)
    drawn = source.draw(15, 3)
    counts = np.bincount([source.labels[index] for index in drawn])
    assert counts.tolist() == [5, 5, 5]
    assert drawn == open_images(tmp_path).draw(15, 3)
    assert drawn != source.draw(15, 4)
    assert len(source.draw(1000, 0)) == 75


def test_the_digest_tells_sets_apart(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    first = load(tmp_path).digest()
    assert first == load(tmp_path).digest()
    picture(tmp_path / "a.png", 2)
    assert first != load(tmp_path).digest()


def test_a_copy_counts_once(tmp_path: Path) -> None:
    for index, pixels in enumerate((1, 2, 1, 3, 2, 1)):
        picture(tmp_path / f"{index}.png", pixels)
    (tmp_path / "2b.png").write_bytes(b"no picture")
    whole = open_images(tmp_path)
    clean = whole.load(range(whole.count), RGB)
    assert (len(clean), clean.copies, len(clean.unreadable)) == (3, 3, 1)
    assert clean.indices == (0, 1, 4)  # 0.png, 1.png and 3.png, after 2.png and 2b.png
    part = PartSource(whole, [6, 4, 1, 0]).load(range(4), RGB)
    assert (part.copies, part.indices) == (1, (0, 1, 2)), "5.png stands for 0.png here"


def test_a_picture_under_two_labels_does_not_count(tmp_path: Path) -> None:
    for folder, index, pixels in (("a", 0, 1), ("b", 0, 1), ("a", 1, 2), ("a", 2, 2), ("b", 1, 3)):
        picture(tmp_path / folder / f"{index}.png", pixels)
    clean = load(tmp_path)
    assert (clean.conflicts, clean.copies) == (1, 2)
    assert sorted(zip(clean.labels.tolist(), clean.images[:, 0, 0, 0].tolist(), strict=True)) == [
        (0, 2),
        (1, 3),
    ]
    (tmp_path / "b" / "1.png").unlink()
    for index in (1, 2):
        (tmp_path / "a" / f"{index}.png").unlink()
    with pytest.raises(ImageError, match="every picture is there under several labels"):
        load(tmp_path)


# ---- parting a set


def numbered(folder: Path, *members: int, labelled: bool = True) -> Path:
    """An .npz of so many images a class; the pixels of each say its number."""
    count = sum(members)
    images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
    arrays = {"images": images}
    if labelled:
        arrays["labels"] = np.repeat(np.arange(len(members)), members)
    path = folder / f"{'-'.join(map(str, members))}{labelled}.npz"
    np.savez(path, **arrays)
    return path


def numbers(part: PartSource) -> list[int]:
    """Which images a part holds, by their pixels."""
    return part.load(range(part.count), GREY).images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("holdout", [0.05, 0.2, 0.4, 0.5, 0.95])
@pytest.mark.parametrize("members", [(20, 20, 20), (40, 7, 1, 2), (3, 3, 3, 3, 3), (60,)])
def test_parts_are_disjoint_and_whole(
    members: tuple[int, ...], holdout: float, labelled: bool, tmp_path: Path
) -> None:
    source = open_images(numbered(tmp_path, *members, labelled=labelled))
    first, second = split(source, holdout, limit=1000, seed=0)
    assert sorted(numbers(first) + numbers(second)) == list(range(sum(members)))
    assert first.count + second.count == source.count
    if labelled:  # a class never loses its last image to the second part
        assert set(first.labels) == set(range(len(members)))
    else:
        assert first.labels is None
        assert second.count == min(round(holdout * sum(members)), sum(members) - 1)


@pytest.mark.parametrize("holdout", [0.1, 0.25, 0.4, 0.5, 0.8])
@pytest.mark.parametrize("each", [5, 10, 13])
def test_the_share_is_taken_of_every_class(each: int, holdout: float, tmp_path: Path) -> None:
    source = open_images(numbered(tmp_path, *(each,) * 8))
    _, second = split(source, holdout, limit=1000, seed=3)
    members = np.bincount(second.labels, minlength=8)
    assert np.abs(members - holdout * each).max() <= 1
    assert abs(second.count - holdout * 8 * each) <= 0.5  # rounding does not add up


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_a_split_does_not_part_copies(form: str, tmp_path: Path) -> None:
    pixels, labels = np.arange(120) % 60, np.arange(120) % 60 // 10
    if form == "npz":
        images = pixels.astype(np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
        np.savez(tmp_path / "twice.npz", images=images, labels=labels)
    for index in range(120 * (form == "folder")):
        picture(tmp_path / "c" / str(labels[index]) / f"{index}.png", int(pixels[index]), mode="L")
    source = open_images(tmp_path / ("twice.npz" if form == "npz" else "c"))
    first, second = split(source, 0.4, limit=1000, seed=0)
    assert (first.count, second.count) == (36, 24)
    assert sorted(numbers(first) + numbers(second)) == list(range(60))
    assert first.remarks == ("60 images of 120 left out: copies.",)


def test_a_file_that_is_gone_when_it_is_parted_is_no_error(tmp_path: Path) -> None:
    for index in range(20):
        picture(tmp_path / "c" / str(index % 2) / f"{index}.png", index)
    source = open_images(tmp_path / "c")
    (tmp_path / "c" / "0" / "4.png").unlink()
    parts = split(source, 0.4, limit=1000, seed=0)
    loaded = [part.load(range(part.count), GREY) for part in parts]
    assert sum(map(len, loaded)) == 19
    assert sum(len(clean.unreadable) for clean in loaded) == 1


def test_a_class_of_one_image_is_not_judged_by(tmp_path: Path) -> None:
    source = open_images(numbered(tmp_path, 1, 1, 30, 1))
    first, second = split(source, 0.5, limit=1000, seed=0)
    assert set(second.labels) == {2}
    assert sorted(set(first.labels)) == [0, 1, 2, 3]


def test_a_seed_means_one_split(tmp_path: Path) -> None:
    source = open_images(numbered(tmp_path, 20, 20))
    one, two, other = (split(source, 0.4, limit=1000, seed=seed) for seed in (1, 1, 2))
    assert [numbers(part) for part in one] == [numbers(part) for part in two]
    assert set(numbers(one[1])) != set(numbers(other[1]))


def test_the_limit_is_drawn_before_it_is_parted(tmp_path: Path) -> None:
    source = open_images(numbered(tmp_path, 60, 20, 20))
    first, second = split(source, 0.4, limit=30, seed=0)
    assert (first.count, second.count) == (18, 12)
    assert np.bincount(first.labels).tolist() == [6, 6, 6]
    assert set(numbers(first)) | set(numbers(second)) == {
        int(source.load([index], GREY).images[0, 0, 0, 0]) for index in source.draw(30, 0)
    }


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_a_part_reads_the_images_of_the_whole(form: str, tmp_path: Path) -> None:
    if form == "npz":
        path = numbered(tmp_path, 4, 4, 4)
    else:
        path = tmp_path / "c"
        for index in range(12):
            picture(path / "abc"[index // 4] / f"{index:02}.png", index, mode="L")
    whole = open_images(path)
    part = PartSource(whole, [9, 2, 7])
    assert (part.count, part.labels, part.name) == (3, [2, 0, 1], whole.name)
    assert part.class_names == whole.class_names
    assert [part.label_of(index) for index in range(3)] == [2, 0, 1]
    clean = part.load(range(3), GREY)
    assert clean.images[:, 0, 0, 0].tolist() == [9, 2, 7]
    assert clean.labels.tolist() == [2, 0, 1]
    assert part.load([2], GREY).images.unique().item() == 7
    assert part.sizes([0, 1]) == {(32, 32)}
    assert sorted(part.draw(2, 0)) == sorted(part.draw(2, 0))
    assert set(part.draw(10, 0)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, -1, 1]), "label -1 is no class number"),
        (np.array([0, 2**63 + 1, 1], dtype=np.uint64), "is no class number"),
    ],
)
def test_labels_that_number_no_class(labels: np.ndarray, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=labels)
    with pytest.raises(ImageError, match=said):
        open_images(tmp_path / "a.npz")


def damaged(path: Path, how: str) -> None:
    """An archive with two arrays, then changed in one place."""
    arrays = {"images": np.arange(3 * 64 * 64 * 3, dtype=np.uint8).reshape(3, 64, 64, 3)}
    arrays["labels"] = np.arange(3)
    write = np.savez_compressed if how == "deflated header" else np.savez
    write(path, **arrays)
    data = bytearray(path.read_bytes())
    labels = data.index(b"labels.npy")
    place = {
        "pixels": data.index(b"images.npy") + 5000,
        "deflated header": data.index(b"images.npy") + 30,
        "label": labels + 30 + 130,
        "local header": labels - 29,
        "encrypted": data.index(b"PK\x01\x02") + 8,
        "compression": data.index(b"PK\x01\x02") + 10,
    }[how]
    data[place] = {"encrypted": 1, "compression": 77}.get(how, data[place] ^ 0x55)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how", ["pixels", "deflated header", "label", "local header", "encrypted", "compression"]
)
def test_a_damaged_archive_is_said_to_be_so(how: str, tmp_path: Path) -> None:
    damaged(tmp_path / "a.npz", how)
    with pytest.raises(ImageError, match="is damaged"):
        open_images(tmp_path / "a.npz").load([0, 1, 2], blank_spec((3, 32, 32)))


def test_labels_that_end_early_are_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array, kept in (
            ("images", np.zeros((3, 8, 8, 3), np.uint8), None),
            ("labels", np.arange(3), -8),
        ):
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{name}.npy", file.getvalue()[:kept])
    with pytest.raises(ImageError, match="is damaged"):
        open_images(tmp_path / "a.npz")


def test_arrays_may_have_an_opacity_first(tmp_path: Path) -> None:
    pixels = np.full((2, 4, 32, 32), 200, np.uint8)
    pixels[:, 3] = 255
    np.savez(tmp_path / "a.npz", images=pixels)
    clean = open_images(tmp_path / "a.npz").load([0, 1], blank_spec((3, 32, 32)))
    assert clean.images.shape == (1, 3, 32, 32)  # the second one is a copy
    assert clean.images.unique().tolist() == [200]


@pytest.mark.parametrize("error", [struct.error("4 bytes"), TypeError("no int"), KeyError(274)])
def test_whatever_a_damaged_picture_raises_it_alone_is_left_out(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow lets them through, for example where the orientation of a PNG cannot be read."""
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    turn = ImageOps.exif_transpose

    def broken(image: Image.Image) -> Image.Image:
        if image.getpixel((0, 0)) == (0, 0, 255):
            raise error
        return turn(image)

    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    clean = open_images(tmp_path).load([0, 1, 2], blank_spec((3, 32, 32)))
    assert len(clean) == 2
    (left,) = clean.unreadable
    assert left.startswith("c.png (")


def test_folders_of_enormous_numbers_are_names(tmp_path: Path) -> None:
    for name in ("7", "12345678901234567890"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    source = open_images(tmp_path)
    assert sorted(source.labels or []) == [0, 1]
    assert len(source.class_names) == 2


@pytest.mark.parametrize(
    "table",
    [
        '"a.png","1"\n"b, c.png","0"\n',
        "\ufeffa.png,1\nb, c.png,0\n",
        "\ufefffile,label\na.png,1\nb, c.png,0",
    ],
)
def test_tables_of_labels_as_other_programs_write_them(table: str, tmp_path: Path) -> None:
    for name in ("a.png", "b, c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text(table, "utf-8")
    assert open_images(tmp_path).labels == [1, 0]


@pytest.mark.parametrize("label", ["²", "9" * 5000, "-1"])
def test_what_is_no_class_number_is_said(label: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"file,label\na.png,{label}\n", "utf-8")
    with pytest.raises(ImageError, match=r"line 2: .* is no class number"):
        open_images(tmp_path)


def test_what_a_folder_names_and_does_not_hold_is_remarked(tmp_path: Path) -> None:
    for value, name in enumerate(("a.png", "b.png")):
        picture(tmp_path / "flat" / name, value)
    table = tmp_path / "flat" / "labels.csv"
    table.write_text("file,label\na.png,1\nb.png,0\nz\x1b.png,2\ngone.png,2\n", "utf-8")
    (remark,) = load(tmp_path / "flat").remarks
    assert remark == "labels.csv names files that are no images here: gone.png, z␛.png."
    table.write_text("a.png,1\nb.png,0\n", "utf-8")
    assert not load(tmp_path / "flat").remarks
    picture(tmp_path / "classes" / "cat" / "a.png")
    (tmp_path / "classes" / "dog").mkdir()
    (tmp_path / "classes" / "dog" / "a.gif").write_bytes(b"GIF89a")
    assert load(tmp_path / "classes").remarks == (
        "Class folders without an image that is read: dog.",
        f"Pictures of formats that are not read: {Path('dog') / 'a.gif'}.",
    )


def test_an_empty_folder_does_not_renumber_the_classes(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        picture(tmp_path / str(number) / "a.png", number)
    (tmp_path / "results").mkdir()
    clean = load(tmp_path)
    assert [int(image[0, 0, 0]) for image in clean.images] == clean.labels.tolist()
    assert clean.class_names == ()
    assert clean.remarks == ("Class folders without an image that is read: results.",)
    names = tuple(map(str, range(11)))
    assert load(tmp_path, names=names).labels.tolist() == clean.labels.tolist()
    for name in ("010", "02"):
        picture(tmp_path / name / "b.png", 10)
    with pytest.raises(ImageError, match="class folders 010 and 10 have one number"):
        load(tmp_path)


def test_a_table_may_name_classes(tmp_path: Path) -> None:
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        picture(tmp_path / name, index)
    table = tmp_path / "labels.csv"
    table.write_text("a.png;cat\nb.png;dog\nc.png;dog\n", "utf-8")
    assert open_images(tmp_path, ("cat", "dog")).labels == [0, 1, 1]
    with pytest.raises(ImageError, match=r'line 1: "cat" is no class number.*--labels FILE gives'):
        open_images(tmp_path)
    table.write_text("a.png,cat\nb.png,dog\nc.png,1\n", "utf-8")
    with pytest.raises(ImageError, match=r'line 1: "cat" is no class number.*or all by the names'):
        open_images(tmp_path, ("cat", "dog"))
    table.write_text("a.png;tabby, cat\nb.png;dog\nc.png;dog\n", "utf-8")
    assert open_images(tmp_path, ("dog", "tabby, cat")).labels == [1, 0, 0]
    table.write_text("file,label\na.png,1\nb.png,2\nc.png,2\n", "utf-8")
    assert open_images(tmp_path, ("0", "1", "2")).labels == [1, 2, 2]
    with pytest.raises(ImageError, match=r'line 2: "1" is class 0 by its name .* and class 1 by'):
        open_images(tmp_path, ("1", "2", "3"))
    table.write_text("label,file\n0,a.png\n", "utf-8")
    with pytest.raises(ImageError, match=r'line 2: "a\.png" is no .*The file comes first'):
        open_images(tmp_path)
    table.write_text("a.png,0\nb.png,1\na.png,0\nc.png,1\n", "utf-8")
    assert open_images(tmp_path).labels == [0, 1, 1]
    table.write_text("a.png,0\nb.png,1\nc.png,1\na.png,1\n", "utf-8")
    with pytest.raises(ImageError, match=r"line 4: a\.png has label 1 here and label 0 before"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    "shape", [(-1, 8, 8, 3), (10**13, 8, 8, 3), (2, 0, 8, 3), (2, 10**7, 8, 3)]
)
def test_an_array_that_holds_less_than_its_shape_says(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w") as archive,
        archive.open("images.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(300))
    with pytest.raises(ImageError, match="the array images is damaged: its shape is"):
        open_images(tmp_path / "a.npz")


def test_class_names_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\ufeffstop\nyield\n", "utf-8")
    assert read_class_names(tmp_path / "names.txt") == ("stop", "yield")
