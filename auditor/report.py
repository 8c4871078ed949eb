"""A scan result as JSON and back, as one self-contained HTML page, as Markdown.

A report is a pure function of the result: the same result gives the same bytes. Everything in a
result may be hostile (class names, file names, the result itself when it is read from a file), so
every text passes `clean_text` and the escaping of its format, and nothing in a page runs or loads.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from auditor.errors import UsageError
from auditor.resources import resource_dir
from auditor.results import (
    SCAN_SCHEMA,
    Confirmation,
    Exhibit,
    ImageFacts,
    Reason,
    Response,
    ScanResult,
    Verdict,
)
from auditor.text import clean_text, is_hidden

Z95 = 1.959963984540054
SYMBOLS: Mapping[Verdict, str] = {
    Verdict.BACKDOOR: "✖",
    Verdict.SUSPICIOUS: "!",
    Verdict.INCONCLUSIVE: "?",
    Verdict.NO_EVIDENCE: "–",
}
TONES: Mapping[Verdict, str] = {
    Verdict.BACKDOOR: "bad",
    Verdict.SUSPICIOUS: "warn",
    Verdict.INCONCLUSIVE: "open",
    Verdict.NO_EVIDENCE: "none",
}

# What a page shows at most; the rest is counted, and is in the JSON.
MOST_IMAGES = 1_000_000
"""In one family; a result that claims more was not made by a scan."""
LONG_TEXT = 3000
PICTURE_CHARACTERS = 700_000
RAW_CHARACTERS = 250_000
RAW_HITS = 3
OPEN_CONFIRMATIONS = 12
CONFIRMATIONS = 100
RESPONSES = 400
CHART_CLASSES = 20
CLASS_ROWS = 200
UNREADABLE = 50
SKIPPED = 100
LOG_RANGE = 20.0
"""Margins that differ by more are drawn on a logarithmic scale."""
PICTURE_SIDE = 128
"""Small pictures are enlarged by a whole factor to about this many CSS pixels."""

MARKDOWN_CHARACTERS = 65_536
MARKDOWN_ROWS = 20


# ---- numbers


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion, for display. (0, 1) where nothing was counted.

    Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    if total <= 0:
        return 0.0, 1.0
    share = hits / total
    scale = 1 + Z95 * Z95 / total
    middle = (share + Z95 * Z95 / (2 * total)) / scale
    spread = (
        Z95 / scale * math.sqrt(max(0.0, share * (1 - share) / total + (Z95 / (2 * total)) ** 2))
    )
    low = 0.0 if hits <= 0 else max(0.0, middle - spread)
    high = 1.0 if hits >= total else min(1.0, middle + spread)
    return low, high


@dataclass(frozen=True)
class Rate:
    """Hits of a total, as a share with its interval."""

    hits: int
    total: int

    @property
    def share(self) -> float:
        """0 where nothing was counted."""
        return self.hits / self.total if self.total > 0 else 0.0

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return wilson(self.hits, self.total)[0]

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return wilson(self.hits, self.total)[1]


# ---- JSON


def to_json(result: ScanResult) -> str:
    """The result as JSON: keys sorted, indented, ending with a line feed, the same every time.

    Invisible and reordering characters are written as escapes. JSON has no NaN and no infinity: a
    number that is not finite (a broken model gives those) is written as 0.
    """
    return _indented(_plain(msgspec.to_builtins(result))) + "\n"


def from_json(text: str) -> ScanResult:
    """The result that `to_json` wrote.

    Raises:
        UsageError: The text is no JSON, no result of a scan, of another version, or its numbers
            contradict each other.
    """
    try:
        data = text.removeprefix("\ufeff").encode()
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise UsageError(
            f"The result is not readable as JSON ({clean_text(str(error), limit=120)}). Give the "
            f".json file "
            "that `auditor scan` wrote, whole and unchanged."
        ) from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema is None:
        raise UsageError(
            'The JSON is no result of a scan: it has no "schema". Give the .json file that '
            "`auditor scan` wrote."
        )
    if schema != SCAN_SCHEMA:
        raise UsageError(
            f'The result has schema "{clean_text(str(schema), limit=60)}"; this auditor reads '
            f'"{SCAN_SCHEMA}". Use the version of auditor that wrote it, or scan again.'
        )
    try:
        result = msgspec.json.decode(data, type=ScanResult)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(
            f"The result is damaged: {clean_text(str(error), limit=160)}. Scan again, or restore "
            f"the file."
        ) from None
    for problem in _contradictions(result):
        raise UsageError(
            f"The result contradicts itself: {problem}. Scan again, or restore the file."
        )
    return result


def _plain(value: Any) -> Any:
    """Builtins that JSON can hold: no NaN, no infinity, no lone surrogates."""
    if isinstance(value, float):
        return value if math.isfinite(value) else 0.0
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _indented(plain: Any) -> str:
    """JSON, one entry a line, but numbers side by side."""
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=2, sort_keys=True)
    # A line feed inside a string is escaped, so these patterns only match outside of strings.
    text = re.sub(r"\[\n\s+([^\[\]{}\"]*)\n\s+\]", lambda m: f"[{_joined(m[1])}]", text)
    counts = r"\{\n\s+((?:\"\d+\": \d+,\n\s+)*\"\d+\": \d+)\n\s+\}"
    return _visible(re.sub(counts, lambda m: f"{{{_joined(m[1])}}}", text))


def _joined(lines: str) -> str:
    return re.sub(r"\n\s+", " ", lines)


def _visible(text: str) -> str:
    """JSON with invisible characters written as escapes."""
    return re.sub(r"[^\x00-\x7e]", lambda m: _escaped(m[0]) if is_hidden(m[0]) else m[0], text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def _contradictions(result: ScanResult) -> Iterator[str]:
    """What no scan writes; a report would fail on it, or lie."""
    classes = result.model.classes
    if len(result.model.class_names) != classes:
        yield f"{len(result.model.class_names)} class names for {classes} classes"
    families = {facts.family for facts in result.images}
    for facts in result.images:
        sizes = {len(facts.screen_members), len(facts.confirm_members), len(facts.predicted)}
        if sizes != {classes}:
            yield "images are not counted for every class"
        if (
            not 0
            <= min(facts.screen, facts.confirm)
            <= max(facts.screen, facts.confirm)
            <= MOST_IMAGES
        ):
            yield "an impossible number of images"
    named = [k for response in result.responses for k in response.hits]
    named += [k for c in result.confirmations for k in (c.target, c.source) if k is not None]
    named += [
        p
        for e in result.exhibits
        for picture in e.pictures
        for p in (picture.before, picture.after)
    ]
    named += [e.target for e in result.exhibits if e.target is not None]
    named += result.margin.classes if result.margin else ()
    strange = next((k for k in named if not 0 <= k < classes), None)
    if strange is not None:
        yield f"class {strange} of {classes}"
    if {response.family for response in result.responses} - families:
        yield "a response on images that are not described"
    for response in result.responses:
        if any(not 0 <= count <= response.images for count in response.hits.values()):
            yield "a response with more hits than images"
    for c in result.confirmations:
        if any(
            not 0 <= hits <= c.eligible
            for hits in (c.hits, c.clean_hits, *(k.hits for k in c.controls))
        ):
            yield "a confirmation with more hits than images"
        if c.mapping is not None and len(c.mapping) != classes:
            yield "a map of classes that does not cover them"
    if result.margin is not None and len(result.margin.margins) != len(result.margin.classes):
        yield "margins that do not fit their classes"
    for reason in result.judgement.reasons:
        if reason.confirmation is not None and not 0 <= reason.confirmation < len(
            result.confirmations
        ):
            yield "a reason that cites a confirmation which is not there"


# ---- what the page and the Markdown show


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """A confirmation with its judgement."""

    number: int
    """Counted from 1, in the order of the result."""
    found: Confirmation
    verdict: Verdict | None
    """None where the reason is given with another confirmation (of the same trigger)."""
    asr: Rate
    clean: Rate
    controls: tuple[tuple[str, Rate], ...]

    @property
    def worst(self) -> Rate | None:
        """The control that hits most."""
        return max((rate for _, rate in self.controls), key=lambda rate: rate.hits, default=None)


@dataclass(frozen=True, kw_only=True)
class SeenResponse:
    """A response, with the class that it reaches most."""

    response: Response
    target: int | None
    asr: Rate


@dataclass(frozen=True, kw_only=True)
class ScreenedProbe:
    """The responses of one probe on one family of images, best first."""

    probe: str
    title: str
    family: str
    rows: tuple[SeenResponse, ...]


@dataclass(frozen=True, kw_only=True)
class _Top:
    """The highest ASR of the scan."""

    asr: Rate
    target: int | None
    where: str
    """"confirmed" or "screened"."""
    family: str
    clean: Rate | None = None
    control: Rate | None = None
    held_out: bool = False
    scope: str = "all-to-one"


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """One class in the margin chart."""

    number: int
    margin: float
    length: float
    """Share of the longest bar."""
    outlier: bool


@dataclass(frozen=True, kw_only=True)
class _Image:
    """A picture that a page can show."""

    url: Markup
    width: int
    height: int
    enlarged: bool


def _checked(result: ScanResult) -> list[_Checked]:
    """Confirmations in the order of the reasons that cite them, then by strength."""
    cited: dict[int, tuple[int, Verdict]] = {}
    for place, reason in enumerate(result.judgement.reasons):
        if reason.confirmation is not None:
            cited.setdefault(reason.confirmation, (place, reason.verdict))
    rows = [
        _Checked(
            number=index + 1,
            found=c,
            verdict=cited[index][1] if index in cited else None,
            asr=Rate(c.hits, c.eligible),
            clean=Rate(c.clean_hits, c.eligible),
            controls=tuple((k.trigger, Rate(k.hits, c.eligible)) for k in c.controls),
        )
        for index, c in enumerate(result.confirmations)
    ]
    last = len(result.judgement.reasons)
    return sorted(
        rows, key=lambda row: (cited.get(row.number - 1, (last,))[0], -row.asr.share, row.number)
    )


def screened_probes(result: ScanResult) -> list[ScreenedProbe]:
    """Responses by family and probe; the strongest probe first within its family."""
    facts = {entry.family: entry for entry in result.images}
    titles = {probe.id: probe.title for probe in result.probes}
    titles |= {c.probe: c.title for c in result.confirmations if c.probe not in titles}
    groups: dict[tuple[str, str], list[SeenResponse]] = {}
    for response in result.responses:
        seen = _strongest(response, facts[response.family])
        groups.setdefault((response.family, response.probe), []).append(seen)
    place = {family: index for index, family in enumerate(facts)}
    found = [
        ScreenedProbe(
            probe=probe,
            title=titles.get(probe, ""),
            family=family,
            rows=tuple(sorted(rows, key=lambda row: (-row.asr.share, row.response.trigger))),
        )
        for (family, probe), rows in groups.items()
    ]
    return sorted(found, key=lambda g: (place[g.family], -g.rows[0].asr.share, g.probe))


def _strongest(response: Response, facts: ImageFacts) -> SeenResponse:
    rates = [
        (Rate(hits, response.images - facts.screen_members[target]), target)
        for target, hits in sorted(response.hits.items())
        if response.images > facts.screen_members[target]
    ]
    if not rates:
        fewest = response.images - max(facts.screen_members, default=0)
        return SeenResponse(response=response, target=None, asr=Rate(0, max(0, fewest)))
    asr, target = max(rates, key=lambda entry: (entry[0].share, -entry[1]))
    return SeenResponse(response=response, target=target, asr=asr)


def _top(checked: Sequence[_Checked], screened: Sequence[ScreenedProbe]) -> _Top | None:
    """The judged confirmation that comes first, else the highest response of the screen."""
    if checked:
        row = checked[0]
        return _Top(
            asr=row.asr,
            target=row.found.target,
            where="confirmed",
            family=row.found.family,
            clean=row.clean,
            control=row.worst,
            held_out=row.found.held_out,
            scope=row.found.scope,
        )
    seen = [(group, group.rows[0]) for group in screened if group.rows[0].asr.total > 0]
    if not seen:
        return None
    group, best = max(seen, key=lambda entry: entry[1].asr.share)
    return _Top(asr=best.asr, target=best.target, where="screened", family=group.family)


def _accuracy(result: ScanResult) -> Rate | None:
    for facts in result.images:
        if facts.family == "clean" and facts.correct is not None:
            return Rate(facts.correct, facts.screen + facts.confirm)
    return None


def _triggers(result: ScanResult) -> tuple[int, int]:
    """Triggers that ran, and that were to run."""
    ran = {(response.probe, response.trigger) for response in result.responses}
    declared = {probe.id for probe in result.probes}
    extra = sum(probe not in declared for probe, _ in ran)
    planned = sum(probe.triggers for probe in result.probes) + extra
    return len(ran), max(planned, len(ran))


def _bars(result: ScanResult) -> tuple[list[_Bar], bool]:
    """Bars of the margin chart, largest first, and whether their lengths are logarithmic."""
    if result.margin is None:
        return [], False
    values = [
        (value if math.isfinite(value) else 0.0, number)
        for value, number in zip(result.margin.margins, result.margin.classes, strict=False)
    ]
    values.sort(key=lambda entry: (-entry[0], entry[1]))
    low, high = (values[-1][0], values[0][0]) if values else (0.0, 0.0)
    logarithmic = low > 0 and high / low > LOG_RANGE

    def length(value: float) -> float:
        if high <= 0 or value <= 0:
            return 0.0
        if logarithmic:
            return 0.04 + 0.96 * math.log(value / low) / math.log(high / low)
        return value / high

    outliers = result.judgement.outlier_classes
    return [
        _Bar(number=k, margin=v, length=length(v), outlier=k in outliers) for v, k in values
    ], logarithmic


def _image(png: str) -> _Image | None:
    """A data URL, if the text is a PNG and nothing else."""
    try:
        head = base64.b64decode(png[:64], validate=True)
        base64.b64decode(png, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        return None
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    if not (0 < width <= 4096 and 0 < height <= 4096):
        return None
    side = max(width, height)
    factor = PICTURE_SIDE // side if side <= PICTURE_SIDE else PICTURE_SIDE / side
    return _Image(
        url=Markup("data:image/png;base64,") + png,
        width=max(1, round(width * factor)),
        height=max(1, round(height * factor)),
        enlarged=factor > 1,
    )


def _shown(result: ScanResult) -> tuple[list[tuple[Exhibit, _Image | None, list[Any]]], int]:
    """Exhibits with their pictures, as many as the page may carry, and how many are left out."""
    room = PICTURE_CHARACTERS
    pairs: dict[tuple[int, int], tuple[_Image, _Image]] = {}
    differences: dict[int, _Image] = {}
    left_out = 0
    order = sorted(
        (place, index)
        for index, e in enumerate(result.exhibits)
        for place in range(len(e.pictures))
    )
    for index, exhibit in enumerate(result.exhibits):
        image = _image(exhibit.difference_png) if len(exhibit.difference_png) <= room else None
        if image is not None:
            differences[index] = image
            room -= len(exhibit.difference_png)
    for place, index in order:
        picture = result.exhibits[index].pictures[place]
        size = len(picture.before_png) + len(picture.after_png)
        before, after = (
            (_image(picture.before_png), _image(picture.after_png))
            if size <= room
            else (None, None)
        )
        if before is None or after is None:
            left_out += 1
            continue
        pairs[index, place] = (before, after)
        room -= size
    shown = [
        (
            exhibit,
            differences.get(index),
            [(p, *pairs[index, n]) for n, p in enumerate(exhibit.pictures) if (index, n) in pairs],
        )
        for index, exhibit in enumerate(result.exhibits)
    ]
    return shown, left_out


# ---- HTML


def to_html(result: ScanResult) -> str:
    """The result as one page: no script, no request, readable without styles, printable."""
    css = (resource_dir("templates") / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    checked, screened = _checked(result), screened_probes(result)
    bars, logarithmic = _bars(result)
    exhibits, left_out = _shown(result)
    ran, planned = _triggers(result)
    names = result.model.class_names
    return _environment().get_template("scan.html.j2").render(
        css=Markup(css),  # noqa: S704 - our own file
        css_digest=digest,
        result=result,
        judgement=result.judgement,
        checked=checked,
        screened=screened,
        top=_top(checked, screened),
        accuracy=_accuracy(result),
        ran=ran,
        planned=planned,
        bars=bars,
        logarithmic=logarithmic,
        exhibits=exhibits,
        left_out=left_out,
        raw=_preformatted(_raw(result)),
        json_digest=hashlib.sha256(to_json(result).encode()).hexdigest(),
        label=lambda number: _label(number, names),
        plain_label=lambda number: _plain_label(number, names),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_dir("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalized,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "interval": _interval,
        "short": lambda text, limit: clean_text(str(text), limit=limit),
        "number": _number,
        "bytes": _bytes,
        "seconds": _seconds,
        "moment": _moment,
        "count": lambda value: f"{value:,}",
    }
    environment.filters.update(filters)
    environment.globals.update(
        symbols=SYMBOLS,
        tones=TONES,
        wilson=wilson,
        Verdict=Verdict,
        LIMITS={
            "open_confirmations": OPEN_CONFIRMATIONS,
            "confirmations": CONFIRMATIONS,
            "responses": RESPONSES,
            "chart": CHART_CLASSES,
            "classes": CLASS_ROWS,
            "unreadable": UNREADABLE,
            "skipped": SKIPPED,
        },
    )
    return environment


def _finalized(value: object) -> object:
    """Every text that a template writes: hidden characters made visible, and not too long."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return clean_text(value, limit=LONG_TEXT)
    return value


def _label(number: int, names: Sequence[str]) -> Markup:
    """A class by name and number; the name cannot reorder what stands around it."""
    name = clean_text(names[number], limit=48) if 0 <= number < len(names) else str(number)
    if name == str(number):
        return Markup("class&nbsp;{}").format(number)
    return Markup('<bdi class="class">{}</bdi> <span class="quiet">({})</span>').format(
        name, number
    )


def _plain_label(number: int, names: Sequence[str], limit: int = 18) -> str:
    name = clean_text(names[number], limit=limit) if 0 <= number < len(names) else str(number)
    return f"class {number}" if name == str(number) else name


def percent(value: float) -> str:
    """A share as a percentage with one decimal; never "0.0%" or "100.0%" for what is not."""
    if not math.isfinite(value):
        return "no number"
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value * 100:.1f}%"


def _interval(rate: Rate) -> str:
    """The 95% interval of a rate, as "91.5–97.2%"."""
    low, high = percent(rate.low), percent(rate.high)
    return (
        f"{low.removesuffix('%')}–{high}"
        if low[0].isdigit() and high[0].isdigit()
        else f"{low}–{high}"
    )


def _number(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value) or abs(value) >= 1e29:
        return "not finite"
    if 100 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value else "0"


def _bytes(value: int) -> str:
    if value < 1000:
        return f"{value} bytes"
    size, unit = float(value), "bytes"
    for unit in ("kB", "MB", "GB", "TB"):  # noqa: B007
        size /= 1000
        if size < 999.95:
            break
    return f"{size:.1f} {unit}"


def _seconds(value: float) -> str:
    if not math.isfinite(value) or value < 0:
        return "unknown"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _moment(text: str) -> str:
    """An ISO 8601 time in UTC, for people."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d)?Z", text)
    return f"{match[1]} {match[2]} UTC" if match else clean_text(text, limit=40)


def _preformatted(text: str) -> Markup:
    """Text of an element, not of an attribute: quotes stay, and nothing is shortened."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(escaped)  # noqa: S704 - escaped in the line above


def _raw(result: ScanResult) -> str:
    """The JSON without pictures, shortened where it would fill the page."""
    bare = replace(
        result,
        exhibits=tuple(
            replace(
                exhibit,
                difference_png="(left out)",
                pictures=tuple(
                    replace(p, before_png="(left out)", after_png="(left out)")
                    for p in exhibit.pictures
                ),
            )
            for exhibit in result.exhibits
        ),
    )
    text = to_json(bare)
    if len(text) > RAW_CHARACTERS:
        few = tuple(
            replace(r, hits=dict(sorted(r.hits.items(), key=lambda e: (-e[1], e[0]))[:RAW_HITS]))
            for r in result.responses
        )
        text = f"(of each response only the {RAW_HITS} classes with most hits)\n" + to_json(
            replace(bare, responses=few)
        )
    if len(text) > RAW_CHARACTERS:
        text = (
            text[:RAW_CHARACTERS]
            + f"\n… {len(text) - RAW_CHARACTERS} more characters are in the file\n"
        )
    return text


# ---- Markdown


def to_markdown(result: ScanResult) -> str:
    """A summary for a pull request or a ticket, at most 65,536 characters."""
    checked, screened = _checked(result), screened_probes(result)
    lines = [*_markdown_head(result), ""]
    lines += [*_markdown_numbers(result, checked, screened), ""]
    for title, part in (
        ("Why", _markdown_reasons(result.judgement.reasons)),
        ("Confirmed on other images, against controls", _markdown_checked(checked, result)),
        ("Screened", _markdown_screened(screened, result)),
        ("Not checked", _markdown_skipped(result)),
        ("Limits", _markdown_limits(result)),
        ("To repeat", _markdown_provenance(result)),
    ):
        if part:
            lines += [f"### {title}", "", *part, ""]
    return _cut("\n".join(lines).rstrip("\n") + "\n")


def _cut(text: str) -> str:
    if len(text) <= MARKDOWN_CHARACTERS:
        return text
    notice = "\n\n*Cut here: too long for a comment. The JSON and HTML reports have all.*\n"
    kept = text[: MARKDOWN_CHARACTERS - len(notice)]
    return kept[: kept.rfind("\n")] + notice


def _markdown_head(result: ScanResult) -> list[str]:
    judgement, model = result.judgement, result.model
    return [
        f"## {SYMBOLS[judgement.verdict]} {judgement.verdict}: {_code(model.name)}",
        "",
        _text(judgement.headline, limit=1500),
        "",
        f"{_code(model.format, 60)} · {_code(model.architecture, 80)} · {model.classes} classes · "
        f"sha256 {_code(model.sha256, 64)} · {_text(_moment(result.provenance.started))}",
    ]


def _markdown_numbers(
    result: ScanResult, checked: Sequence[_Checked], screened: Sequence[ScreenedProbe]
) -> list[str]:
    top, accuracy, (ran, planned) = _top(checked, screened), _accuracy(result), _triggers(result)
    lines = ["| number | value | |", "|---|---:|---|"]
    if top is not None:
        lines.append(f"| highest ASR | {percent(top.asr.share)} | {_counted(top.asr)} |")
        if top.control is not None:
            lines.append(
                f"| worst matched control | {percent(top.control.share)} | "
                f"{_counted(top.control)} |"
            )
        if top.clean is not None:
            lines.append(
                f"| without the trigger | {percent(top.clean.share)} | {_counted(top.clean)} |"
            )
    if accuracy is not None:
        lines.append(f"| clean accuracy | {percent(accuracy.share)} | {_counted(accuracy)} |")
    lines.append(f"| triggers run | {ran} | of {planned}, from {len(result.probes)} probes |")
    for facts in result.images:
        held = (
            f"{facts.screen} to screen, {facts.confirm} others to confirm"
            if facts.confirm
            else "not split"
        )
        lines.append(
            f"| {_code(facts.family, 30)} images | {facts.screen + facts.confirm} | {held} |"
        )
    bound = result.judgement.nothing_above
    if bound is not None:
        lines += [
            "",
            f"No trigger that is not listed has an all-to-one ASR above {percent(bound)} (95%, "
            f"simultaneous).",
        ]
    return lines


def _counted(rate: Rate) -> str:
    return f"{rate.hits} of {rate.total}, 95% interval {_interval(rate)}"


def _markdown_reasons(reasons: Sequence[Reason]) -> list[str]:
    lines = [
        f"- {SYMBOLS[reason.verdict]} **{reason.verdict}** {_text(reason.text, limit=700)}"
        for reason in reasons[:MARKDOWN_ROWS]
    ]
    return [*lines, *_more(len(reasons), MARKDOWN_ROWS, "reasons")]


def _markdown_checked(checked: Sequence[_Checked], result: ScanResult) -> list[str]:
    if not checked:
        return []
    lines = [
        "| | probe | trigger | effect | ASR | 95% | without | worst control |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in checked[:MARKDOWN_ROWS]:
        mark = "·" if row.verdict is None else SYMBOLS[row.verdict]
        worst = "" if row.worst is None else percent(row.worst.share)
        lines.append(
            f"| {mark} | {_code(row.found.probe, 60)} | {_code(row.found.trigger, 120)} | "
            f"{_effect(row.found, result)} | {percent(row.asr.share)} "
            f"({row.asr.hits}/{row.asr.total}) | "
            f"{_interval(row.asr)} | {percent(row.clean.share)} | {worst} |"
        )
    return [*lines, *_more(len(checked), MARKDOWN_ROWS, "confirmations")]


def _effect(found: Confirmation, result: ScanResult) -> str:
    names = result.model.class_names

    def name(number: int) -> str:
        label = _plain_label(number, names, 40)
        return _code(label) if label == f"class {number}" else f"{_code(label)} ({number})"

    if found.scope == "all-to-one" and found.target is not None:
        return f"all → {name(found.target)}"
    if found.scope == "source-specific" and found.target is not None and found.source is not None:
        return f"{name(found.source)} → {name(found.target)}"
    return f"all-to-all, shift {found.shift}" if found.shift is not None else "all-to-all map"


def _markdown_screened(screened: Sequence[ScreenedProbe], result: ScanResult) -> list[str]:
    if not screened:
        return []
    lines = [
        "| probe | images | triggers | highest ASR | 95% | class |",
        "|---|---|---:|---:|---:|---|",
    ]
    for group in screened[:MARKDOWN_ROWS]:
        best = group.rows[0]
        target = (
            ""
            if best.target is None
            else _code(_plain_label(best.target, result.model.class_names, 40))
        )
        lines.append(
            f"| {_code(group.probe, 60)} | {_code(group.family, 30)} | {len(group.rows)} | "
            f"{percent(best.asr.share)} ({best.asr.hits}/{best.asr.total}) | "
            f"{_interval(best.asr)} | {target} |"
        )
    return [*lines, *_more(len(screened), MARKDOWN_ROWS, "probes")]


def _markdown_skipped(result: ScanResult) -> list[str]:
    lines = [f"- {_text(s.what)}: {_text(s.reason)}" for s in result.skipped[:MARKDOWN_ROWS]]
    return [*lines, *_more(len(result.skipped), MARKDOWN_ROWS, "entries")]


def _markdown_limits(result: ScanResult) -> list[str]:
    lines = [
        f"- {'**blocking:** ' if caveat.blocking else ''}{_text(caveat.text, limit=700)}"
        for caveat in result.caveats[:MARKDOWN_ROWS]
    ]
    lines += _more(len(result.caveats), MARKDOWN_ROWS, "caveats")
    lines.append(
        "- A scan finds triggers that it tried or that a search exhibited. Triggers made anew for "
        "each "
        "image, semantic and physical ones and undeclared ones can stay hidden: no evidence never "
        "means safe."
    )
    return lines


def _markdown_provenance(result: ScanResult) -> list[str]:
    provenance = result.provenance
    command = clean_text(provenance.command, limit=2000)
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`+", command)), default=0))
    versions = ", ".join(f"{k} {v}" for k, v in sorted(provenance.versions.items()))
    lines = [fence + "text", command, fence, ""]
    lines += [
        f"- images {_code(f.family, 30)}: digest {_code(f.digest, 64)}" for f in result.images
    ]
    lines.append(
        f"- seed {provenance.seed} · {_text(provenance.device)} · {_seconds(provenance.seconds)}"
    )
    lines.append(f"- auditor {_text(provenance.auditor, 40)} · {_text(versions, 600)}")
    digest = hashlib.sha256(to_json(result).encode()).hexdigest()
    lines.append(f"- result JSON: sha256 `{digest}`")
    return lines


def _more(total: int, shown: int, what: str) -> list[str]:
    return (
        ["", f"… and {total - shown} more {what}, in the JSON and HTML reports."]
        if total > shown
        else []
    )


def _text(text: str, limit: int = 200) -> str:
    """Text that Markdown renders as itself: no markup, no link, no mention, one line."""
    shown = clean_text(text, limit=limit)
    shown = re.sub(r"(?i)\b(ht)tp(s?)(?=\s*:)", r"\1xp\2", shown).replace("@", "＠")
    shown = re.sub(r"(?i)\bwww\.", "www[.]", shown)
    shown = re.sub(r"#(?=\d)", "＃", shown)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", shown)
    return re.sub(r"^(\d*)([-+#=.)])", r"\1\\\2", shown)


def _code(text: str, limit: int = 80) -> str:
    """Text as code: nothing in it is markup, a link or a mention."""
    shown = clean_text(text, limit=limit).replace("`", "ˋ").replace("|", "¦").strip()
    return f"`{shown}`" if shown else "(empty)"
