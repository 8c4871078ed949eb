"""The summary of a scan in Markdown."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from auditor.report.json import to_json
from auditor.report.markdown import MARKDOWN_ROWS, code, counted, cut, fenced, inert, more
from auditor.report.numbers import duration, fine_percent, interval, moment, percent
from auditor.report.page import SYMBOLS, plain_label
from auditor.report.scan_view import (
    Checked,
    ScreenedProbe,
    bound_text,
    checked_confirmations,
    clean_accuracy,
    count_triggers,
    highest_response,
    screened_probes,
)
from auditor.report.search_view import SearchedForm, searched_forms
from auditor.results.scan import Confirmation, Reason, ScanResult


def scan_markdown(result: ScanResult) -> str:
    """A summary for a pull request or a ticket, at most 65,536 characters."""
    checked, screened = checked_confirmations(result), screened_probes(result)
    lines = [*_head(result), ""]
    lines += [*_numbers(result, checked, screened), ""]
    for title, part in (
        ("Why", _reasons(result.judgement.reasons)),
        (
            "Held against controls, on images that the screen has not seen unless it is said",
            _checked(checked, result),
        ),
        ("Screened", _screened(screened, result)),
        ("Searched", _searched(searched_forms(result), result)),
        ("Not checked", _skipped(result)),
        ("Limits", _limits(result)),
        ("To repeat", _provenance(result)),
    ):
        if part:
            lines += [f"### {title}", "", *part, ""]
    return cut("\n".join(lines).rstrip("\n") + "\n")


def _head(result: ScanResult) -> list[str]:
    judgement, model = result.judgement, result.model
    return [
        f"## {SYMBOLS[judgement.verdict]} {judgement.verdict}: {code(model.name)}",
        "",
        inert(judgement.headline, limit=1500),
        "",
        f"{code(model.format, 60)} · {code(model.architecture, 80)} · {model.classes} classes · "
        f"sha256 {code(model.sha256, 64)} · {inert(moment(result.provenance.started))}",
    ]


def _numbers(
    result: ScanResult, checked: Sequence[Checked], screened: Sequence[ScreenedProbe]
) -> list[str]:
    top, accuracy, (ran, planned) = (
        highest_response(checked, screened),
        clean_accuracy(result),
        count_triggers(result),
    )
    lines = ["| number | value | |", "|---|---:|---|"]
    if top is not None:
        of = " of a searched trigger" if top.searched else ""
        lines.append(f"| highest ASR{of} | {percent(top.asr.share)} | {counted(top.asr)} |")
        if top.control is not None:
            lines.append(
                f"| worst matched control | {percent(top.control.share)} | {counted(top.control)} |"
            )
        if top.clean is not None:
            lines.append(
                f"| without the trigger | {percent(top.clean.share)} | {counted(top.clean)} |"
            )
    if accuracy is not None:
        lines.append(f"| clean accuracy | {percent(accuracy.share)} | {counted(accuracy)} |")
    lines.append(f"| triggers run | {ran} | of {planned}, from {len(result.probes)} probes |")
    found = sum(row.found.searched for row in checked)
    if found:
        lines.append(f"| searched triggers | {found} | by {len(result.inversions)} searches |")
    for facts in result.images:
        held = (
            f"{facts.screen} to screen, {facts.confirm} others to confirm"
            if facts.confirm
            else "not split"
        )
        lines.append(
            f"| {code(facts.family, 30)} images | {facts.screen + facts.confirm} | {held} |"
        )
    if (bound := bound_text(result)) is not None:
        lines += ["", bound]
    return lines


def _reasons(reasons: Sequence[Reason]) -> list[str]:
    lines = [
        f"- {SYMBOLS[reason.verdict]} **{reason.verdict}** {inert(reason.text, limit=700)}"
        for reason in reasons[:MARKDOWN_ROWS]
    ]
    return [*lines, *more(len(reasons), MARKDOWN_ROWS, "reasons")]


def _checked(checked: Sequence[Checked], result: ScanResult) -> list[str]:
    if not checked:
        return []
    lines = [
        "| | probe | trigger | effect | ASR | 95% | without | worst control |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in checked[:MARKDOWN_ROWS]:
        mark = "·" if row.verdict is None else SYMBOLS[row.verdict]
        worst = "" if row.worst is None else percent(row.worst.share)
        searched = " (searched)" if row.found.searched else ""
        lines.append(
            f"| {mark} | {code(row.found.probe, 60)}{searched} | {code(row.found.trigger, 120)} | "
            f"{_effect(row.found, result)}{_details(row)} | {percent(row.asr.share)} "
            f"({row.asr.hits}/{row.asr.total}) | "
            f"{interval(row.asr)} | {percent(row.clean.share)} | {worst} |"
        )
    return [*lines, *more(len(checked), MARKDOWN_ROWS, "confirmations")]


def _details(row: Checked) -> str:
    said = "" if row.found.held_out else "; on the screening images"
    said += "" if row.surer is None else f"; surer than usual on {row.surer.hits}/{row.surer.total}"
    if row.further is not None:
        said += f"; further than for other classes on {row.further.hits}/{row.further.total}"
    return said


def _name(number: int, result: ScanResult) -> str:
    label = plain_label(number, result.model.class_names, 40)
    return code(label) if label == f"class {number}" else f"{code(label)} ({number})"


def _effect(found: Confirmation, result: ScanResult) -> str:
    if found.scope == "all-to-one" and found.target is not None:
        return f"all → {_name(found.target, result)}"
    if found.scope == "source-specific" and found.target is not None and found.source is not None:
        return f"{_name(found.source, result)} → {_name(found.target, result)}"
    return f"all-to-all, shift {found.shift}" if found.shift is not None else "all-to-all map"


def _screened(screened: Sequence[ScreenedProbe], result: ScanResult) -> list[str]:
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
            else code(plain_label(best.target, result.model.class_names, 40))
        )
        lines.append(
            f"| {code(group.probe, 60)} | {code(group.family, 30)} | {len(group.rows)} | "
            f"{percent(best.asr.share)} ({best.asr.hits}/{best.asr.total}) | "
            f"{interval(best.asr)} | {target} |"
        )
    return [*lines, *more(len(screened), MARKDOWN_ROWS, "probes")]


def _searched(searches: Sequence[SearchedForm], result: ScanResult) -> list[str]:
    if not searches:
        return []
    lines = [
        "| search | size | classes | not reached | smallest | next | largest |",
        "|---|---|---:|---:|---|---|---:|",
    ]
    for form in searches[:MARKDOWN_ROWS]:
        search = form.search
        reached = [
            f"{fine_percent(bar.value)} {_name(bar.number, result)}"
            for bar in form.bars
            if bar.value is not None
        ]
        smallest, second, largest = reached[:1], reached[1:2], reached[2:][-1:]
        lines.append(
            f"| {code(search.search, 60)} | {inert(search.measure, 120)} | {len(search.classes)} of "
            f"{result.model.classes} | {len(form.missed)} | {''.join(smallest)} | "
            f"{''.join(second)} | {''.join(largest)} |"
        )
    return [
        *lines,
        *more(len(searches), MARKDOWN_ROWS, "searches"),
        "",
        f"{_comparison(result)} Networks without a backdoor give way to such changes as well, only "
        "larger ones; by itself this proves nothing.",
    ]


def _comparison(result: ScanResult) -> str:
    judgement = result.judgement
    if judgement.search_p is None:
        return (
            "Fewer than three searches ran or fewer than 8 classes were reached, so classes were not "
            "compared."
        )
    named = ", ".join(_name(k, result) for k in judgement.search_classes[:MARKDOWN_ROWS])
    return f"All searches together set {named or 'no class'} apart (p = {judgement.search_p:.2g})."


def _skipped(result: ScanResult) -> list[str]:
    lines = [f"- {inert(s.what)}: {inert(s.reason)}" for s in result.skipped[:MARKDOWN_ROWS]]
    return [*lines, *more(len(result.skipped), MARKDOWN_ROWS, "entries")]


def _limits(result: ScanResult) -> list[str]:
    lines = [
        f"- {'**blocking:** ' if caveat.blocking else ''}{inert(caveat.text, limit=700)}"
        for caveat in result.caveats[:MARKDOWN_ROWS]
    ]
    lines += more(len(result.caveats), MARKDOWN_ROWS, "caveats")
    lines.append(
        "- A scan finds triggers that it tried or that a search exhibited. Triggers made anew for "
        "each "
        "image, semantic and physical ones and undeclared ones can stay hidden: no evidence never "
        "means safe."
    )
    return lines


def _provenance(result: ScanResult) -> list[str]:
    provenance = result.provenance
    versions = ", ".join(f"{k} {v}" for k, v in sorted(provenance.versions.items()))
    lines = [*fenced(provenance.command), ""]
    lines += [f"- images {code(f.family, 30)}: digest {code(f.digest, 64)}" for f in result.images]
    lines.append(
        f"- seed {provenance.seed} · {inert(provenance.device)} · {duration(provenance.seconds)}"
    )
    lines.append(f"- auditor {inert(provenance.auditor, 40)} · {inert(versions, 600)}")
    digest = hashlib.sha256(to_json(result).encode()).hexdigest()
    lines.append(f"- result JSON: sha256 `{digest}`")
    return lines
