"""Data sets that are read from files, or that a library brings along."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.zoo.data.base import DATA, Data, Part
from bench.zoo.rows import ZooError

CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@DATA.register("digits")
def digits(_: Path) -> Data:
    """scikit-learn's 1,797 handwritten digits, grey, enlarged from 8 to 16 px; a third is test."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images / 16).float()[:, None]
    large = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    images = (large * 255).round().to(torch.uint8)
    labels = torch.from_numpy(raw.target).long()
    test = torch.arange(len(labels)) % 3 == 2
    return Data(
        names=tuple(str(digit) for digit in range(10)),
        train=Part(images=images[~test], labels=labels[~test]),
        test=Part(images=images[test], labels=labels[test]),
    )


@DATA.register("cifar10")
def cifar10(folder: Path) -> Data:
    """CIFAR-10, from `cifar10/{train,test}_jpeg.npz`, or from torchvision's own files."""
    here = folder / "cifar10"
    if (here / "train_jpeg.npz").is_file():
        return Data(names=CIFAR10_NAMES, train=_jpegs(here / "train_jpeg.npz"),
                    test=_jpegs(here / "test_jpeg.npz"))  # fmt: skip
    from torchvision.datasets import CIFAR10

    for root in (folder, here):
        if (root / "cifar-10-batches-py").is_dir():
            parts = [CIFAR10(root, train=train, download=False) for train in (True, False)]
            train, test = (
                Part(images=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
                     labels=torch.tensor(part.targets)) for part in parts
            )  # fmt: skip
            return Data(names=CIFAR10_NAMES, train=train, test=test)
    raise ZooError(f"no CIFAR-10 in {folder}: cifar10/train_jpeg.npz or cifar-10-batches-py/")


@DATA.register("gtsrb")
def gtsrb(folder: Path) -> Data:
    """GTSRB at 32 px, from torchvision's layout `gtsrb/GTSRB/`."""
    from torchvision.datasets import GTSRB

    try:
        train, test = (
            GTSRB(folder / "gtsrb", split=split, download=False)._samples
            for split in ("train", "test")
        )
    except RuntimeError as error:
        raise ZooError(f"no GTSRB in {folder / 'gtsrb'}: {error}") from error
    names = tuple(f"{label:02d}" for label in range(43))
    return Data(names=names, train=_files(train, 32), test=_files(test, 32))


@DATA.register("tiny-imagenet")
def tiny_imagenet(folder: Path) -> Data:
    """Tiny-ImageNet at 64 px, from its own layout `tiny-imagenet-200/`."""
    here = folder / "tiny-imagenet-200"
    names = sorted(path.name for path in (here / "train").glob("*") if path.is_dir())
    notes = here / "val" / "val_annotations.txt"
    if not names or not notes.is_file():
        raise ZooError(f"no Tiny-ImageNet in {here}: train/ and val/val_annotations.txt")
    train = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((here / "train" / name).rglob("*.JPEG"))
    ]
    rows = [line.split("\t") for line in notes.read_text("utf-8").splitlines() if line]
    test = [(here / "val" / "images" / row[0], names.index(row[1])) for row in rows]
    return Data(names=tuple(names), train=_files(train, 64), test=_files(test, 64))


@DATA.register("imagenet")
def imagenet(folder: Path) -> Data:
    """ImageNet folders at 224 px, `imagenet/{train,val}/<class>/*`; all of it is kept in memory."""
    here = folder / "imagenet"
    names = sorted(path.name for path in (here / "train").glob("*") if path.is_dir())
    if not names:
        raise ZooError(f"no ImageNet folders in {here / 'train'}")
    train, test = (
        [
            (path, label)
            for label, name in enumerate(names)
            for path in sorted((here / part / name).glob("*"))
        ]
        for part in ("train", "val")
    )
    return Data(names=tuple(names), train=_files(train, 224), test=_files(test, 224))


def _jpegs(path: Path) -> Part:
    """Images that are kept as JPEG bytes, one run with offsets."""
    with np.load(path) as stored:
        run, offsets, labels = stored["jpeg"].tobytes(), stored["offsets"], stored["labels"]
    images = np.stack([
        np.asarray(Image.open(io.BytesIO(run[start:stop])).convert("RGB"))
        for start, stop in itertools.pairwise(offsets)
    ])  # fmt: skip
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Part(images=tensor, labels=torch.from_numpy(labels).long())


def _files(samples: list[tuple[str | Path, int]], side: int) -> Part:
    """Image files, the shorter side resized to `side` and the centre cut out."""
    if not samples:
        raise ZooError("a part of the data set holds no images")
    images = torch.empty(len(samples), 3, side, side, dtype=torch.uint8)
    for row, (path, _) in zip(images, samples, strict=True):
        with Image.open(path) as image:
            square = _square(image.convert("RGB"), side)
        row.copy_(torch.from_numpy(np.array(square)).permute(2, 0, 1))
    return Part(images=images, labels=torch.tensor([label for _, label in samples]))


def _square(image: Image.Image, side: int) -> Image.Image:
    least = min(image.size)
    left, top = ((length - least) // 2 for length in image.size)
    return image.resize(
        (side, side), Image.Resampling.BILINEAR, box=(left, top, left + least, top + least)
    )
