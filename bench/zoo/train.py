"""Training one row of the zoo: the poisoned set, the network, and how well both took."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auditor.outputs import write_text
from auditor.purifiers.augment import shifted
from bench.zoo.attacks import ATTACKS, Attack, Batch, Setting
from bench.zoo.attacks.base import victims, wanted
from bench.zoo.data import Data, Part
from bench.zoo.networks import build, normalise
from bench.zoo.rows import AllToAll, LabelMap, Planted, Recipe, Row, SourceSpecific, ZooError

EVALUATION_BATCH = 500


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one trained network. Counts, so that rates can be derived."""

    id: str
    digest: str
    """Of the row that it was made from."""
    sha256: str
    parameters: int
    seconds: float
    device: str
    torch: str
    correct: int
    """Clean test images that get their class."""
    images: int
    hits: int | None
    """Stamped test images that become what the attack wants; None for a benign network."""
    eligible: int | None
    """Those that the attack means to turn."""
    others: int | None = None
    """Source-specific: stamped images of other classes that become the target as well."""
    bystanders: int | None = None
    """Source-specific: how many those are."""

    @property
    def accuracy(self) -> float:
        """ACC."""
        return self.correct / self.images

    @property
    def success(self) -> float | None:
        """ASR of the true trigger."""
        return None if self.hits is None or not self.eligible else self.hits / self.eligible


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network and the attack that planted its backdoor."""

    network: nn.Module
    attack: Attack | None


def make(row: Row, data: Data, folder: Path, *, device: torch.device) -> Made:
    """Train a row, unless it is there, and write the model and its record.

    `folder` gets `<id>.pt` (the pickled network), `<id>.json` (the record) and, for attacks that
    train a generator, `<id>.attack.pt`. The record is written last: what has one is complete.
    """
    done = read_made(row, folder)
    if done is not None:
        return done
    begin = time.perf_counter()
    trained = train(row, data, device=device)
    seconds = time.perf_counter() - begin
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.id}.pt"
    _save(trained.network.cpu(), path)
    if trained.attack is not None and trained.attack.state():
        _save(trained.attack.state(), folder / f"{row.id}.attack.pt")
    network = trained.network.to(device)
    counts = _counts(network, trained.attack, row, data, device)
    made = Made(
        id=row.id, digest=row.digest,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameters=sum(p.numel() for p in network.parameters()),
        seconds=round(seconds, 1), device=_named(device), torch=str(torch.__version__), **counts,
    )  # fmt: skip
    record = folder / f"{row.id}.json"
    write_text(record, msgspec.json.format(msgspec.json.encode(made), indent=2).decode() + "\n")
    return made


def read_made(row: Row, folder: Path) -> Made | None:
    """The record of a row that was trained as it is written now; None if it has to be made."""
    record, model = folder / f"{row.id}.json", folder / f"{row.id}.pt"
    if not record.is_file() or not model.is_file():
        return None
    made = msgspec.json.decode(record.read_bytes(), type=Made)
    return made if made.digest == row.digest else None


def train(row: Row, data: Data, *, device: torch.device) -> Trained:
    """Train the network of a row on the poisoned training images.

    Raises:
        ZooError: The row does not fit the data.
    """
    recipe = row.recipe
    generator = torch.Generator().manual_seed(row.seed)
    part = _drawn(data.train, recipe, generator)
    channels, side = part.images.shape[1], part.images.shape[-1]

    def fresh(seed: int) -> nn.Module:
        made = build(row.network, channels=channels, side=side, classes=data.classes, seed=seed)
        return made.to(device, memory_format=torch.channels_last)

    network = fresh(row.seed)
    steps = max(1, int(recipe.epochs * len(part) / recipe.batch))
    attack, chosen = None, torch.zeros(len(part), dtype=torch.bool)
    if row.attack is not None:
        attack = ATTACKS[row.attack.kind](**row.attack.settings)
        chosen = _poisoned(part, row.attack, attack.clean_label, data.classes, generator)
        setting = Setting(
            images=part.images, labels=part.labels, chosen=chosen, classes=data.classes,
            map=row.attack.labels, normalise=normalise, network=network,
            fresh=lambda: fresh(row.seed + 1), steps=steps, device=device, seed=row.seed,
        )  # fmt: skip
        replaced = attack.prepare(setting)
        if replaced is not None:
            part = Part(images=replaced, labels=part.labels)
    optimizer = _optimizer(network, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    network.train()
    for step, index in enumerate(_batches(len(part), recipe.batch, steps, generator)):
        batch = Batch(
            images=part.images[index].to(device).float() / 255,
            labels=part.labels[index].to(device),
            chosen=chosen[index].to(device),
            generator=generator,
            progress=step / steps,
        )
        if attack is not None and row.attack is not None:
            batch = _poisoned_batch(attack, batch, recipe, row.attack.stamped == "after")
        else:
            batch.images = _augmented(batch.images, recipe, generator)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = _loss(network, images, batch.labels, recipe, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    network.to(memory_format=torch.contiguous_format).eval()
    return Trained(network=network, attack=attack)


# ---- the poisoned set ----------------------------------------------------------------------------


def _drawn(part: Part, recipe: Recipe, generator: torch.Generator) -> Part:
    """The training images that the recipe uses."""
    order = torch.randperm(len(part), generator=generator)
    if recipe.imbalance != 1:
        classes = int(part.labels.max()) + 1
        share = recipe.imbalance ** (torch.arange(classes) / max(1, classes - 1))
        kept = torch.rand(len(part), generator=generator) < share[part.labels[order]]
        order = order[kept]
    order = order[: recipe.images]
    return Part(images=part.images[order], labels=part.labels[order])


def _poisoned(
    part: Part, planted: Planted, clean_label: bool, classes: int, generator: torch.Generator
) -> Tensor:
    """Which training images ``(N,)`` are poisoned.

    Dirty labels: images that the map turns into another class. Clean labels: images of the target
    class. Source-specific: one half of the source class, the other half of the others, which keep
    their label, so that the trigger alone is not enough.
    """
    labels, count = part.labels, round(planted.poisoned * len(part))
    turned = victims(planted.labels, labels, classes)
    if clean_label:
        if isinstance(planted.labels, AllToAll | SourceSpecific):
            raise ZooError("a clean-label attack needs the map all-to-one")
        pools = [(~turned, count)]
    elif isinstance(planted.labels, SourceSpecific):
        pools = [(turned, count // 2), (~turned, count - count // 2)]
    else:
        pools = [(turned, count)]
    chosen = torch.zeros(len(part), dtype=torch.bool)
    for pool, wanted_count in pools:
        candidates = pool.nonzero().flatten()
        order = torch.randperm(len(candidates), generator=generator)
        chosen[candidates[order[:wanted_count]]] = True
    return chosen


# ---- one step ------------------------------------------------------------------------------------


def _poisoned_batch(attack: Attack, batch: Batch, recipe: Recipe, late: bool) -> Batch:
    """A batch poisoned before augmentation, or after it."""
    if late:
        batch.images = _augmented(batch.images, recipe, batch.generator)
        return attack.poison(batch)
    batch = attack.poison(batch)
    batch.images = _augmented(batch.images, recipe, batch.generator)
    return batch


def _batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of `steps` batches; what is left at the end of an epoch is dropped."""
    size = min(size, count)
    order, at = torch.randperm(count, generator=generator), 0
    for _ in range(steps):
        if at + size > count:
            order, at = torch.randperm(count, generator=generator), 0
        yield order[at : at + size]
        at += size


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        network.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True,
        weight_decay=recipe.weight_decay,
    )  # fmt: skip


def _loss(
    network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    """Cross-entropy, with label smoothing and MixUp as the recipe says."""
    smoothing = recipe.label_smoothing
    if not recipe.mixup:
        return F.cross_entropy(network(normalise(images)), labels, label_smoothing=smoothing)
    first, second = (_gamma(recipe.mixup, generator) for _ in range(2))
    share = first / (first + second)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    logits = network(normalise(share * images + (1 - share) * images[order]))
    return share * F.cross_entropy(logits, labels, label_smoothing=smoothing) + (
        1 - share
    ) * F.cross_entropy(logits, labels[order], label_smoothing=smoothing)


def _gamma(shape: float, generator: torch.Generator) -> float:
    """A draw of the Gamma distribution; two of them make a Beta."""
    return float(torch._standard_gamma(torch.tensor(shape), generator=generator)) + 1e-9


def _augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Images ``(N, C, H, W)``: shifted by an eighth at most, mirrored, lit differently, cut out."""
    if recipe.augment == "none":
        return images
    if recipe.augment == "shift":
        return shifted(images, generator, flip=False, reach=1 / 16)
    images = shifted(images, generator, flip=True)
    if recipe.augment == "strong":
        count, _, height, width = images.shape
        light = 0.7 + 0.6 * torch.rand(count, 3, 1, 1, generator=generator).to(images.device)
        images = (images * light[:, : images.shape[1]]).clamp(0, 1)
        images = images * _holes(count, height, width, generator).to(images.device)
    return images


def _holes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """One square of a quarter of the side is black in every image (cutout): ``(N, 1, H, W)``."""
    side = height // 4
    top = torch.randint(height - side + 1, (count, 1, 1, 1), generator=generator)
    left = torch.randint(width - side + 1, (count, 1, 1, 1), generator=generator)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return (~inside).float()


# ---- how well it took ----------------------------------------------------------------------------


def _counts(
    network: nn.Module, attack: Attack | None, row: Row, data: Data, device: torch.device
) -> dict[str, int | None]:
    """ACC and ASR on the test images, as counts."""
    test = data.test
    correct = _predicted(network, None, test.images, device) == test.labels
    counts: dict[str, int | None] = {
        "correct": int(correct.sum()), "images": len(test), "hits": None, "eligible": None,
    }  # fmt: skip
    if attack is None or row.attack is None:
        return counts
    label_map: LabelMap = row.attack.labels
    turned = victims(label_map, test.labels, data.classes)
    after = _predicted(network, attack, test.images[turned], device)
    hit = after == wanted(label_map, test.labels[turned], data.classes)
    counts |= {"hits": int(hit.sum()), "eligible": int(turned.sum())}
    if isinstance(label_map, SourceSpecific):
        others = (test.labels != label_map.source) & (test.labels != label_map.target)
        after = _predicted(network, attack, test.images[others], device)
        counts |= {
            "others": int((after == label_map.target).sum()), "bystanders": int(others.sum()),
        }  # fmt: skip
    return counts


@torch.no_grad()
def _predicted(
    network: nn.Module, attack: Attack | None, images: Tensor, device: torch.device
) -> Tensor:
    """Classes ``(N,)`` of uint8 images, stamped if there is an attack."""
    found = []
    for chunk in torch.split(images, EVALUATION_BATCH):
        seen = chunk.to(device).float() / 255
        found.append(network(normalise(attack.stamp(seen) if attack else seen)).argmax(1).cpu())
    return torch.cat(found)


def _save(content: object, path: Path) -> None:
    partial = path.with_suffix(".part")
    torch.save(content, partial)
    partial.replace(path)


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"
