"""Probes: YAML files that say which triggers to try, and why. Files to checked triggers."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import msgspec
import yaml

from auditor.endings import is_probe
from auditor.errors import ProbeError, UnknownName
from auditor.registry import nearest
from auditor.resources import resource_dir
from auditor.results.scan import FoundTrigger, ProbeFacts
from auditor.text import slug
from auditor.triggers import TRIGGERS, Trigger
from auditor.triggers.compose import Compose
from auditor.triggers.geometry import Where
from auditor.triggers.image import ImageFile, read_picture
from auditor.triggers.patch import Block, Patch

PROBE_SCHEMA = "auditor.probe/1"
MOST_BYTES = 256_000
MOST_TRIGGERS = 4096
"""In one file: a larger grid is a mistake."""

Tier = Literal["quick", "standard", "deep"]
TIERS: tuple[Tier, ...] = ("quick", "standard", "deep")

SMALL_PICTURE = 16
"""A trigger image of at most this many pixels a side is a patch, not a picture."""
GAPS = (0, 1, 2, 3)
"""Pixels between such a patch and the borders of its corner; published attacks leave up to three."""
MANY_ZEROS = 0.3
"""With this share of black pixels a picture is (also) taken for a patch on a black canvas."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One question to ask a model: does it react to these triggers?"""

    id: str
    title: str
    kind: str
    """Kind of its triggers, a name of `auditor.triggers.TRIGGERS`."""
    tier: Tier
    """The smallest battery that it belongs to."""
    tags: tuple[str, ...] = ()
    what: str
    """What is stamped."""
    why: str
    """Who uses it, and why it is in the battery."""
    known_problems: str
    """What it can miss, and where it differs from the original."""
    references: tuple[str, ...] = ()
    library: str = ""
    """The attack library whose definition it repeats; empty for generic ones."""
    exactness: Literal["X", "D", "R", "A"]
    """X exact constants, D exact function of the image, R drawn at random, A approximate."""
    triggers: tuple[Trigger, ...]

    def facts(self) -> ProbeFacts:
        """The record for the report."""
        return ProbeFacts(
            id=self.id,
            title=self.title,
            kind=self.kind,
            tier=self.tier,
            tags=self.tags,
            what=self.what,
            why=self.why,
            known_problems=self.known_problems,
            references=self.references,
            triggers=len(self.triggers),
        )


class Selection(NamedTuple):
    """What a specification chose."""

    probes: tuple[Probe, ...]
    extras: tuple[str, ...]
    """Ids of the caller's, for example searches."""


# ---- reading -------------------------------------------------------------------------------------


def load_probe(path: Path) -> Probe:
    """Read and check one probe file.

    Raises:
        ProbeError: It cannot be read, or is wrong; the message lists everything that is wrong.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise ProbeError(f"{path}: a probe is a mapping of keys, not {type(content).__name__}")
    problems: list[str] = []
    if content.get("schema") != PROBE_SCHEMA:
        problems.append(f"schema: {content.get('schema')!r} is not {PROBE_SCHEMA!r}")
    texts = {key: value for key, value in content.items() if key not in GRID_KEYS}
    fields = _converted(Probe, texts, problems, also=GRID_KEYS, without=("triggers",))
    if fields.get("id", path.stem) != path.stem:
        problems.append(f"id: {fields['id']!r} must be the name of the file, {path.stem!r}")
    problems += [f"{key}: empty" for key in TEXT_KEYS if not str(fields.get(key, "x")).strip()]
    problems += [
        f"references: {url!r} is not an https address"
        for url in fields.get("references", ())
        if not url.startswith("https://")
    ]
    triggers = _triggers(content, path.parent, problems)
    if problems:
        raise ProbeError("\n  ".join([f"{path}:", *problems]))
    return Probe(**fields, triggers=triggers)


def load_probes(directory: Path) -> tuple[Probe, ...]:
    """Read all ``*.yaml`` of a directory, in the order of their names.

    Raises:
        ProbeError: There is none, or one is wrong.
    """
    files = sorted(file for file in directory.glob("*") if is_probe(file))
    if not files:
        raise ProbeError(f"{directory} holds no probe (no .yaml file)")
    return tuple(load_probe(file) for file in files)


@lru_cache(maxsize=1)
def shipped_probes() -> tuple[Probe, ...]:
    """The battery that comes with the program."""
    return load_probes(resource_dir("probes"))


def from_image(path: Path, mask: Path | None = None) -> Probe:
    """The probe for a trigger image that a user has.

    With a mask, or with transparent pixels, the image overwrites what is under it. Otherwise it is
    not known how it was used, so the usual ways are tried: a small one as a patch in the centre and in
    each corner; a larger one added, mixed in at three strengths, and written over the image where it is
    not black. Without a mask it may be a sticker, too: where it is at most half as high and wide as the
    model's images, it is put into each corner and the centre at its own size. What is small is put into
    the corners at the border and up to three pixels from it.

    Raises:
        ProbeError: A file cannot be read as an image.
    """
    pixels, file = read_picture(str(path)), str(path)
    height, width = pixels.shape[1:]
    triggers: tuple[Trigger, ...]
    is_small = max(height, width) <= SMALL_PICTURE
    pasted = tuple(
        ImageFile(file=file, mode="paste", where=where, gap=gap)
        for gap in (GAPS if is_small else (0,))
        for where in get_args(Where)
        if gap == 0 or where != "centre"
    )
    if mask is not None:
        masked = read_picture(str(mask)).shape[1:]
        if masked != (height, width):
            raise ProbeError(
                f"{path} has {width} x {height} pixels and {mask} {masked[1]} x {masked[0]}: a mask is as "
                "large as its image."
            )
        triggers = (ImageFile(file=file, mask=str(mask), mode="overwrite"),)
    elif bool((pixels[3] < 1).any()):
        triggers = (ImageFile(file=file, mode="overwrite"), *pasted)
    elif is_small:
        cells = tuple(
            tuple(tuple(levels) for levels in row)
            for row in (pixels[:3] * 255).round().int().permute(1, 2, 0).tolist()
        )
        corners = [
            (rows, columns)
            for gap in GAPS
            for rows, columns in (
                (-height - gap, -width - gap), (gap, gap), (-height - gap, gap), (gap, -width - gap)
            )
        ]  # fmt: skip
        triggers = (
            *(Patch(blocks=(Block(at=at, cells=cells),), resize="keep") for at in corners),
            ImageFile(file=file, mode="paste", where="centre"),
        )
    else:
        triggers = (
            ImageFile(file=file, mode="add"),
            *(ImageFile(file=file, mode="blend", alpha=alpha) for alpha in (0.1, 0.2, 0.5)),
            *pasted,
        )
        if float((pixels[:3].amax(0) == 0).float().mean()) >= MANY_ZEROS:
            triggers = (ImageFile(file=file, mode="nonzero"), *triggers)
    stem = slug(path.stem, "image")
    return Probe(
        id=f"user.{stem}",
        title=f"Your trigger image {path.name}",
        kind=TRIGGERS.name_of(type(triggers[0])),
        tier="quick",
        tags=("user",),
        what=f"{path.name}, {width} x {height} pixels, stamped in {len(triggers)} way(s) at most.",
        why="You named it as a possible trigger.",
        known_problems="The way it was stamped when the model was trained may be another one: "
        "write a probe file with kind image or patch to say exactly how.",
        exactness="A",
        triggers=triggers,
    )


def rebuilt(found: FoundTrigger) -> Trigger:
    """The trigger that a search recorded.

    Raises:
        ProbeError: The record does not describe one.
    """
    problems: list[str] = []
    trigger = _trigger(found.kind, found.fields, Path(), problems)
    if trigger is None:
        raise ProbeError(f"{found.trigger}: {'; '.join(problems)}")
    return trigger


def probe_text(found: FoundTrigger, identifier: str, title: str, origin: str) -> str:
    """A probe file that declares a trigger which a search found.

    Args:
        found: The trigger.
        identifier: Id of the probe; the file must be named after it.
        title: What it is, in a line.
        origin: The model that it was found in, and how, in a sentence.
    """
    content = {
        "schema": PROBE_SCHEMA,
        "id": identifier,
        "title": title,
        "kind": found.kind,
        "tier": "quick",
        "tags": ["found"],
        "exactness": "X",
        "what": f"{title}.",
        "why": origin,
        "known_problems": "A search finds a relative of the attacker's trigger, not the trigger itself; "
        "a model that does not obey it may still obey that.",
        "trigger": msgspec.to_builtins(found.fields),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


# ---- choosing ------------------------------------------------------------------------------------


def select(spec: str | Iterable[str], shipped: Sequence[Probe] | None = None) -> tuple[Probe, ...]:
    """The probes that a specification names; see `choose`."""
    return choose(spec, shipped).probes


def choose(
    spec: str | Iterable[str],
    shipped: Sequence[Probe] | None = None,
    extras: Mapping[str, str] | None = None,
) -> Selection:
    """What a specification such as ``quick,tag:blend,./mine/,-warp.*`` names.

    Items, separated by commas: a tier (which includes the smaller ones), ``tag:NAME``, an id, a
    pattern of ids with ``*`` or ``?``, a YAML file, a directory of them. Items add, in order; those
    with a leading ``-`` take away, wherever they stand. If nothing is added, `standard` is.

    Args:
        spec: The specification, or its items.
        shipped: The known probes; None: those that come with the program.
        extras: Other things that can be chosen by id, tier or pattern, for example searches:
            id to tier.

    Raises:
        UnknownName: An item names nothing.
        ProbeError: A file is wrong, or two probes have the same id.
    """
    text = spec if isinstance(spec, str) else ",".join(spec)
    items = [item.strip() for item in text.split(",") if item.strip()]
    removals = [item[1:] for item in items if item.startswith("-")]
    additions = [item for item in items if not item.startswith("-")] or ["standard"]
    extras = extras or {}
    known = {probe.id: probe for probe in (shipped_probes() if shipped is None else shipped)}
    chosen: dict[str, None] = {}
    for item in additions:
        if _is_path(item):
            path = Path(item)
            for probe in load_probes(path) if path.is_dir() else (load_probe(path),):
                if known.setdefault(probe.id, probe) != probe:
                    raise ProbeError(f'{item}: there is another probe with the id "{probe.id}"')
                chosen[probe.id] = None
        else:
            chosen.update(dict.fromkeys(_named(item, known, extras)))
    for item in removals:
        for name in _named(item, known, extras):
            chosen.pop(name, None)
    return Selection(
        probes=tuple(known[name] for name in chosen if name in known),
        extras=tuple(name for name in chosen if name not in known),
    )


def _is_path(item: str) -> bool:
    return is_probe(item) or "/" in item or "\\" in item


def _named(item: str, probes: Mapping[str, Probe], extras: Mapping[str, str]) -> list[str]:
    """The ids that an item names."""
    tiers = {**{name: probe.tier for name, probe in probes.items()}, **extras}
    if item in TIERS:
        included = TIERS[: TIERS.index(item) + 1]
        return [name for name, tier in tiers.items() if tier in included]
    if item.startswith("tag:"):
        tag = item.removeprefix("tag:")
        tags = {tag for probe in probes.values() for tag in probe.tags}
        if tag not in tags:
            raise UnknownName(
                f'no probe has the tag "{tag}"{nearest(tag, tags)} '
                f"Known tags: {', '.join(sorted(tags))}"
            )
        return [name for name, probe in probes.items() if tag in probe.tags]
    matches = fnmatch.filter(tiers, item)
    if not matches:
        raise UnknownName(
            f'no probe, search or tier is named "{item}"{nearest(item, [*tiers, *TIERS])} '
            'List them with "auditor probes list".'
        )
    return matches


# ---- checking ------------------------------------------------------------------------------------

GRID_KEYS = ("schema", "trigger", "grid")
TEXT_KEYS = ("title", "what", "why", "known_problems")

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same in C, eight times as fast, where PyYAML was built with it."""
DEEPEST = 32
OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def _read(path: Path) -> object:
    try:
        if not path.is_file():
            raise ProbeError(f"{path}: no such probe file")
        if path.stat().st_size > MOST_BYTES:
            raise ProbeError(f"{path} is larger than {MOST_BYTES // 1000} kB; no probe is")
        text = path.read_text(encoding="utf-8")
        _refuse_bombs(path, text)
        return yaml.load(text, Loader=LOADER)  # noqa: S506 - it is a safe one
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"cannot read the probe {path}: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if "nesting depth" in str(error):  # newer libyaml counts, too, and looks further ahead
            raise _too_deep(path) from error
        raise ProbeError(f"{path} is not YAML: {error}") from error


def _refuse_bombs(path: Path, text: str) -> None:
    """Refuse YAML that grows when it is read (aliases), or that is nested without end."""
    depth = 0
    for token in yaml.scan(text, Loader=LOADER):
        if isinstance(token, yaml.AliasToken):
            raise ProbeError(f"{path}: YAML aliases (*name) are not allowed; write values out")
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > DEEPEST:
            raise _too_deep(path)


def _too_deep(path: Path) -> ProbeError:
    return ProbeError(f"{path}: YAML nested deeper than {DEEPEST} levels; no probe is")


def _triggers(content: Mapping[str, Any], folder: Path, problems: list[str]) -> tuple[Trigger, ...]:
    """The Cartesian product of the grid, each point with the fixed fields."""
    fixed, grid = content.get("trigger", {}), content.get("grid", {})
    for key, value in (("trigger", fixed), ("grid", grid)):
        if not isinstance(value, dict):
            problems.append(f"{key}: must be a mapping of fields, not {value!r}")
            return ()
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            problems.append(f"grid.{key}: must be a list of values, not {values!r}")
        elif key in fixed:
            problems.append(f"grid.{key}: is also fixed under trigger; say it once")
    if any(problem.startswith("grid.") for problem in problems):
        return ()
    count = math.prod(len(values) for values in grid.values())
    if count > MOST_TRIGGERS:
        problems.append(f"grid: makes {count} triggers; at most {MOST_TRIGGERS} are allowed")
        return ()
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    triggers: list[Trigger] = []
    for point in points:
        found: list[str] = []
        trigger = _trigger(content.get("kind"), {**fixed, **point}, folder, found)
        problems += [problem for problem in found if problem not in problems]
        if trigger is not None:
            triggers.append(trigger)
    if not problems and len(set(triggers)) < len(triggers):
        problems.append("grid: makes the same trigger more than once")
    return tuple(triggers)


def _trigger(
    kind: object, fields: Mapping[str, Any], folder: Path, problems: list[str]
) -> Trigger | None:
    try:
        made = TRIGGERS[str(kind)]
    except UnknownName as error:
        problems.append(f"kind: {error}")
        return None
    before = len(problems)
    fields = dict(fields)
    parts: dict[str, Any] = {}
    if issubclass(made, Compose):
        listed = fields.pop("parts", [])
        if not isinstance(listed, list) or not all(isinstance(part, dict) for part in listed):
            problems.append("trigger.parts: must be a list of mappings with a kind each")
            return None
        inner = [dict(part) for part in listed]
        made_parts = [_trigger(part.pop("kind", None), part, folder, problems) for part in inner]
        parts["parts"] = tuple(part for part in made_parts if part is not None)
    for key in ("file", "mask"):
        if issubclass(made, ImageFile) and isinstance(fields.get(key), str):
            fields[key] = _beside(folder, fields[key], key, problems)
    values = _converted(made, fields, problems, prefix="trigger.", without=tuple(parts))
    if len(problems) > before:
        return None
    try:
        return made(**values, **parts)
    except ProbeError as error:
        problems.append(f"trigger: {error}")
    return None


def _beside(folder: Path, name: str, key: str, problems: list[str]) -> str:
    """The path of a file named in a probe, which must lie in or under the probe's folder."""
    parts = re.split(r"[/\\]", name)
    if not parts[0] or ".." in parts or ":" in name:
        problems.append(
            f"trigger.{key}: {name!r} must be a path below the folder of the probe, without '..'"
        )
    elif not (folder / name).resolve().is_relative_to(folder.resolve()):
        problems.append(f"trigger.{key}: {name!r} links out of the folder of the probe")
    return str(folder / name)


def _converted(
    record: type,
    values: Mapping[str, Any],
    problems: list[str],
    *,
    prefix: str = "",
    also: Sequence[str] = (),
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """The fields of a record from plain values, checked one by one."""
    hints = _hints(record)
    fields = {f.name: f for f in dataclasses.fields(record) if f.name not in without}
    converted: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = nearest(str(key), [*fields, *also])
            allowed = ", ".join([*fields, *also])
            problems.append(f"{prefix}{key}: no such key{near} Known: {allowed}")
            continue
        try:
            converted[key] = msgspec.convert(value, hints[key])
        except (msgspec.ValidationError, ProbeError) as error:
            problems.append(f"{prefix}{key}: {value!r}: {error}{_near_choice(value, hints[key])}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            problems.append(f"{prefix}{name}: missing")
    return converted


@lru_cache(maxsize=64)
def _hints(record: type) -> dict[str, Any]:
    hints = typing.get_type_hints(record)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not ClassVar}


def _near_choice(value: object, hint: Any) -> str:
    if typing.get_origin(hint) is not Literal:
        return ""
    choices = [str(choice) for choice in typing.get_args(hint)]
    return f"{nearest(str(value), choices)} Known: {', '.join(choices)}"
