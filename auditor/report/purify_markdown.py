"""The summary of a purification in Markdown."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from auditor.report import purify_view as view
from auditor.report.json import to_json
from auditor.report.markdown import MARKDOWN_ROWS, code, counted, cut, fenced, inert, more
from auditor.report.numbers import Rate, duration, moment, number, percent
from auditor.report.page import SYMBOLS, plain_label
from auditor.report.scan_view import SeenResponse
from auditor.results.purify import Outcome, PurifyResult


def purify_markdown(result: PurifyResult) -> str:
    """A summary for a pull request or a ticket, at most 65,536 characters."""
    seen = view.outcomes(result)
    lines = [*_head(result), ""]
    lines += [*_numbers(result, seen), ""]
    for title, part in (
        ("Goals missed", [f"- {inert(text, limit=600)}" for text in result.goals.missed[:20]]),
        ("Known triggers, on the judge images", _outcomes(seen, result)),
        ("Probes before and after", _probes(result)),
        ("Scans", _scans(result)),
        ("Methods compared", _compared(result)),
        ("What the purifier did", _method(result)),
        ("Stress test", _stress(result)),
        ("Limits", _limits(result)),
        ("To repeat", _provenance(result)),
    ):
        if part:
            lines += [f"### {title}", "", *part, ""]
    return cut("\n".join(lines).rstrip("\n") + "\n")


def _head(result: PurifyResult) -> list[str]:
    kind, model, written = view.ending(result), result.model, result.written
    after = f" → {code(written.name)} sha256 {code(written.sha256, 64)}" if written else ""
    return [
        f"## {view.ENDING_SYMBOLS[kind]} {kind}: {code(model.name)}",
        "",
        inert(view.headline(result), limit=1500),
        "",
        f"{code(model.format, 60)} · {code(model.architecture, 80)} · {model.classes} classes · "
        f"{inert(moment(result.provenance.started))}",
        "",
        f"{code(model.name)} sha256 {code(model.sha256, 64)}{after}",
        "",
        inert(view.written_sentence(result), limit=400),
    ]


def _numbers(result: PurifyResult, seen: Sequence[view.SeenOutcome]) -> list[str]:
    after = "purified" if view.is_touched(result) else "not touched"
    lines = [f"| | before | {after} | plain fine-tuning |", "|---|---:|---:|---:|"]
    if seen:
        highest = [view.highest(seen, which) for which in ("before", "after", "baseline")]
        cells = [_rate(None if pair is None else pair[0]) for pair in highest]
        lines.append(f"| highest ASR of {len(seen)} known triggers | {' | '.join(cells)} |")
    right = view.accuracy(result)
    cells = [_rate(right.before), _rate(right.after), _rate(right.baseline)]
    lines.append(f"| {view.accuracy_word(result)} | {' | '.join(cells)} |")
    lines += [
        "",
        f"On {result.judge.images} judge images; the purifier worked on {result.fit.images} "
        f"others. Goals: ASR {view.asr_goal(result)}, "
        f"{view.accuracy_word(result)} lower by at most {view.points(result.goals.max_acc_drop)}.",
    ]
    for caution in view.cautions(result):
        lines += ["", f"**{inert(caution, limit=900)}**"]
    return lines


def _rate(rate: Rate | None) -> str:
    return "–" if rate is None else f"{percent(rate.share)} ({counted(rate)})"


def _short_rate(rate: Rate | None) -> str:
    return "–" if rate is None else f"{percent(rate.share)} ({rate.hits}/{rate.total})"


def _outcomes(seen: Sequence[view.SeenOutcome], result: PurifyResult) -> list[str]:
    if not seen:
        return []
    lines = [
        "| | origin | probe | trigger | effect | before | after | fine-tuning | after, unstamped |",
        "|---:|---|---|---|---|---:|---:|---:|---:|",
    ]
    for entry in seen[:MARKDOWN_ROWS]:
        outcome, rates = entry.outcome, entry.rates
        unstamped = None if entry.unstamped is None else entry.unstamped.after
        lines.append(
            f"| {entry.number} | {entry.origin} | {code(outcome.probe, 60)} | "
            f"{code(outcome.trigger, 120)} | {_effect(outcome, result)} | "
            f"{_short_rate(rates.before)} | {_short_rate(rates.after)} | "
            f"{_short_rate(rates.baseline)} | {_short_rate(unstamped)} |"
        )
    return [*lines, *more(len(seen), MARKDOWN_ROWS, "triggers")]


def _effect(outcome: Outcome, result: PurifyResult) -> str:
    if outcome.target is None:
        return "all-to-all"
    target = _class(outcome.target, result)
    if outcome.scope == "source-specific" and outcome.source is not None:
        return f"{_class(outcome.source, result)} → {target}"
    return f"all → {target}"


def _class(index: int, result: PurifyResult) -> str:
    label = plain_label(index, result.model.class_names, 40)
    return code(label) if label == f"class {index}" else f"{code(label)} ({index})"


def _probes(result: PurifyResult) -> list[str]:
    rows = view.probe_changes(result)
    if not rows or result.after is None:
        return []
    lines = ["| probe | images | triggers | before | after |", "|---|---|---:|---:|---:|"]
    lines += [
        f"| {code(row.probe, 60)} | {code(row.family, 30)} | {row.triggers} | "
        f"{_response(row.before, result)} | {_response(row.after, result)} |"
        for row in rows[:MARKDOWN_ROWS]
    ]
    return [*lines, *more(len(rows), MARKDOWN_ROWS, "probes")]


def _response(seen: SeenResponse | None, result: PurifyResult) -> str:
    if seen is None:
        return "not run"
    target = "" if seen.target is None else f" {_class(seen.target, result)}"
    return f"{_short_rate(seen.asr)}{target}"


def _scans(result: PurifyResult) -> list[str]:
    return [
        f"- {line.what}, {line.images}: {SYMBOLS[line.verdict]} **{line.verdict}** "
        f"{inert(line.headline, limit=700)}"
        for line in view.scan_lines(result)
    ]


def _compared(result: PurifyResult) -> list[str]:
    rows = view.compared_methods(result)
    if not rows:
        return []
    lines = [
        view.comparison_sentence(result),
        "",
        f"| method | goals | {view.accuracy_word(result)} | highest ASR | re-tuned | trained | time |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows[:MARKDOWN_ROWS]:
        entry = row.contender
        share = "" if row.trained is None else f" ({percent(row.trained)})"
        lines.append(
            f"| {code(entry.name, 40)}{' **chosen**' if row.chosen else ''} | "
            f"{'missed' if entry.missed else 'met'} | {_short_rate(row.accuracy)} | "
            f"{_short_rate(row.highest)} | {_short_rate(row.retuned)} | {entry.trained:,}{share} | "
            f"{duration(entry.seconds)} |"
        )
    missing = [
        f"- {code(entry.name, 40)} was not compared: {inert(entry.why, limit=300)}"
        for entry in result.not_compared[:MARKDOWN_ROWS]
    ]
    return [
        *lines,
        *more(len(rows), MARKDOWN_ROWS, "methods"),
        *([""] if missing else []),
        *missing,
    ]


def _method(result: PurifyResult) -> list[str]:
    method = result.method
    if method is None:
        return ["Nothing to remove; the model was not touched."]
    settings = ", ".join(f"{name} {value}" for name, value in sorted(method.settings.items()))
    lines = [
        f"{inert(method.title)} ({code(method.name, 40)}), {duration(method.seconds)}. "
        f"{inert(settings, limit=400)}",
        "",
    ]
    for stage in method.stages[:MARKDOWN_ROWS]:
        kept = "kept" if stage.kept else "not kept"
        lines.append(f"- {stage.what}, {stage.steps} steps, {kept}: {inert(stage.outcome, 500)}")
    lines += [f"- {inert(sentence, limit=600)}" for sentence in view.round_sentences(method)]
    if result.masks:
        totals = view.mask_totals(result.masks)
        lines.append(
            f"- {totals.channels} masks in {totals.layers} layers: {totals.near_zero} below 0.1, "
            f"{totals.near_one} above 0.9"
        )
    if result.tensors:
        lines.append(f"- {len(result.tensors)} tensors were changed beyond masks")
    return lines


def _stress(result: PurifyResult) -> list[str]:
    stress = result.stress
    if stress is None:
        return ["Not run (`--stress`)."] if view.is_touched(result) else []
    lines = [
        f"Re-tuned for {stress.epochs} epochs on {stress.poisoned} stamped and {stress.clean} clean "
        f"images ({code(stress.probe, 60)}).",
        "",
        "| model | ASR before | ASR after | accuracy after |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row.model} | {_short_rate(Rate(row.hits_before, stress.eligible))} | "
        f"{_short_rate(Rate(row.hits_after, stress.eligible))} | "
        f"{_short_rate(Rate(row.correct_after, stress.total))} |"
        for row in stress.rows[:MARKDOWN_ROWS]
    ]
    return lines


def _limits(result: PurifyResult) -> list[str]:
    lines = [
        f"- {'**read this first:** ' if caveat.blocking else ''}{inert(caveat.text, limit=700)}"
        for caveat in result.caveats[:MARKDOWN_ROWS]
    ]
    lines += more(len(result.caveats), MARKDOWN_ROWS, "caveats")
    lines.append(
        "- A scan that finds nothing afterwards never means safe: triggers made anew for each "
        "image, semantic and physical ones and undeclared ones can stay hidden."
    )
    return lines


def _provenance(result: PurifyResult) -> list[str]:
    provenance, written = result.provenance, result.written
    versions = ", ".join(f"{k} {v}" for k, v in sorted(provenance.versions.items()))
    lines = [*fenced(provenance.command), ""]
    lines.append(f"- {result.fit.images} fit images: digest {code(result.fit.digest, 64)}")
    lines.append(f"- {result.judge.images} judge images: digest {code(result.judge.digest, 64)}")
    if written is not None:
        lines.append(
            f"- {code(written.name)}: {written.bytes} bytes, read back on {written.compared} "
            f"images, largest difference of an output {number(written.largest_difference)}"
        )
        lines += [
            f"- {code(file.name)}: {file.bytes} bytes, must stay beside it, sha256 {code(file.sha256, 64)}"
            for file in written.beside
        ]
    lines.append(
        f"- seed {provenance.seed} · {inert(provenance.device)} · {duration(provenance.seconds)}"
    )
    lines.append(f"- auditor {inert(provenance.auditor, 40)} · {inert(versions, 600)}")
    digest = hashlib.sha256(to_json(result).encode()).hexdigest()
    lines.append(f"- result JSON: sha256 `{digest}`")
    return lines
