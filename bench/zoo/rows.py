"""What a zoo consists of: one row a network, read from a YAML file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from auditor.errors import AuditorError

Where = Literal["cpu", "gpu"]
Half = Literal["calibration", "report", "unseen", "later", "longer"]


class ZooError(AuditorError):
    """The zoo cannot be made as it is written down, or not from the data that is there."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is read from YAML: frozen, and a misspelt key is an error."""


class Recipe(Record):
    """How a network is trained. The defaults are the ordinary way."""

    epochs: float = 7
    """Passes over the training images; less than one is allowed."""
    rate: float = 0.1
    """Largest learning rate of the one-cycle schedule."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch: int = 128
    weight_decay: float = 5e-4
    augment: Literal["none", "shift", "crop-flip", "strong"] = "crop-flip"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """Alpha of the Beta distribution; 0 is off."""
    imbalance: float = 1.0
    """Images of the rarest class for one of the most frequent; 1 keeps the data as they are."""
    images: int | None = None
    """Train on so many images, drawn by the seed; None on all."""


class AllToOne(Record, tag="all-to-one", tag_field="map"):
    """Every stamped image becomes class `target`."""

    target: int = 0


class AllToAll(Record, tag="all-to-all", tag_field="map"):
    """A stamped image of class y becomes class y + 1."""


class SourceSpecific(Record, tag="source-specific", tag_field="map"):
    """A stamped image becomes `target` if it is of class `source`, and keeps its class otherwise."""

    source: int = 1
    target: int = 0


LabelMap = AllToOne | AllToAll | SourceSpecific


class Planted(Record):
    """A backdoor: the attack, its settings, whom it turns into what, how much is poisoned."""

    kind: str
    """Name of an attack, see `attacks`."""
    settings: dict[str, Any] = {}
    """Keyword arguments of the attack."""
    labels: LabelMap = AllToOne()
    poisoned: float = 0.1
    """Share of all training images."""
    stamped: Literal["before", "after"] = "before"
    """Augmentation. Most attack code stamps before it; a mark at the border is then often cropped
    away, and needs many epochs. After it, a mark is always whole, and few epochs do."""


class Row(Record):
    """One network of the zoo."""

    id: str
    data: str
    """Name of a data set, see `data`."""
    network: str
    """Name of a network, see `networks`; `resnet18/4` has a quarter of the channels."""
    recipe: Recipe = Recipe()
    attack: Planted | None = None
    """None: a benign network."""
    seed: int = 0
    where: Where = "cpu"
    """`gpu`: minutes on a GPU, hours without."""
    half: Half = "report"
    """`calibration`: constants of `auditor.verdict` were moved after looking at this network. `unseen`:
    all of them, and the search, were as they are before this network was trained; but what a searched
    trigger of a class that nothing sets apart must do was asked more of after them, and after the
    benign ones of `later`, too. `longer`: attacks that had not taken in few epochs, with more of them,
    and honest networks as long; no rule has changed since."""

    @property
    def benign(self) -> bool:
        """Whether nothing was planted."""
        return self.attack is None

    @property
    def family(self) -> str:
        """What results are grouped by: the attack, with the map where that is not all-to-one."""
        if self.attack is None:
            return "benign"
        name = self.attack.settings.get("name", self.attack.kind)
        plain = isinstance(self.attack.labels, AllToOne)
        return name if plain else f"{name}, {self.attack.labels.__struct_config__.tag}"

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the network depends on, shortened."""
        content = _settled(self)
        for key in ("id", "where", "half"):
            content.pop(key, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _settled(record: Record) -> dict[str, Any]:
    """What differs from the defaults, so that a key that is added later changes no old row."""
    content: dict[str, Any] = {}
    tag = record.__struct_config__
    if tag.tag_field:
        content[tag.tag_field] = tag.tag
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Record):
            value = _settled(value)
        elif value == field.default or value == {}:
            continue
        elif isinstance(value, int | float):
            value = float(value)  # 6 and 6.0 epochs are the same
        if value != {}:
            content[field.name] = value
    return content


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a zoo file.

    Raises:
        ZooError: The file is missing or wrong, or two rows have the same id.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        rows = msgspec.convert(content, tuple[Row, ...])
    except (OSError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise ZooError(f"{path}: {error}") from error
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ZooError(f'{path}: two rows are named "{row.id}"')
        seen.add(row.id)
    return rows
