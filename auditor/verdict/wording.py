"""Findings in words, with their numbers and what these do not say for themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from auditor.results.facts import Verdict
from auditor.results.scan import Confirmation, Transplants
from auditor.statistics import lower_bound
from auditor.verdict.grading import (
    enough_sources,
    excess_bound,
    further_bound,
    is_obeyed,
    is_shortcut,
    is_small,
    is_sure,
    is_thing,
    is_universal,
    leaves_doubt,
    moved_bound,
    seems_to_work,
    stands_for_a_mark,
    typical_share,
    worst_control,
)
from auditor.verdict.thresholds import (
    BACKDOOR_ASR,
    EXCESS,
    FEWEST_MAPPED,
    FURTHER,
    OBEYED_ASR,
    SMALL_AREA,
    SUSPICIOUS_ASR,
)

CARRIED = 0.1
"""Share of other images below which a searched trigger works on those alone that it was made on."""
MUCH_THE_SAME = 0.8
"""Hits of a control, as a share of the trigger's, that are much the same."""


def named(numbers: Sequence[int], classes: Sequence[str]) -> str:
    """Classes by name and number."""
    return ", ".join(f'"{classes[k]}" (class {k})' for k in numbers)


def against_rivals(
    found: Confirmation, verdict: Verdict, alpha: float, classes: Sequence[str]
) -> str:
    """What triggers of the same kind and size do that were searched for other classes; what follows."""
    best = min(found.rivals, key=lambda rival: rival.weaker)
    text = (
        f" It drives the model further than the best one of the same size that was searched for another "
        f"class, {named([best.target], classes)}, on {best.weaker} of {found.eligible}."
    )
    if verdict is not Verdict.NO_EVIDENCE:
        return (
            f"{text} Backdoors whose trigger is strong look like this; so may a class that resembles what "
            "such a change does, or that is told by fainter marks than the others. Look at the picture."
        )
    if further_bound(found, alpha) < FURTHER:
        return f"{text} That does not set it apart from other classes."
    if moved_bound(found, alpha) < OBEYED_ASR:
        return f"{text} But it moves too few images to count."
    return text + (
        _control_too(found) if found.keeps_meaning else " So strong a change does not count."
    )


def _control_too(c: Confirmation) -> str:
    """Of a trigger whose worst control moves half as many images at least."""
    much = (
        "much the same" if worst_control(c) >= MUCH_THE_SAME * c.hits else "at least half as much"
    )
    return (
        f" Its control does {much}, so that it does not count: a network that gives way to such changes, or "
        "a backdoor that obeys look-alikes of its trigger."
    )


def how_sure(found: Confirmation, verdict: Verdict, alpha: float) -> str:
    """What a searched trigger is judged by beside its numbers."""
    sure = f"{found.surer or 0} of {found.eligible}"
    if verdict is not Verdict.NO_EVIDENCE:
        return f" It makes the model surer than most real images do on {sure}."
    if not is_small(found):
        return " It changes more of an image than a found trigger may to count."
    if found.hits < CARRIED * found.eligible:
        return " What the search made does not carry over to other images."
    if not is_sure(found, alpha):
        return (
            " A search tips any network over; planted triggers make the model surer than real images "
            f"do, and this one does so on {sure}."
        )
    if moved_bound(found, alpha) < BACKDOOR_ASR:
        return f" It makes the model surer than most real images do on {sure}, but moves too few."
    return (
        f" It makes the model surer than most real images do on {sure}: so faint a change of the whole image "
        "can bring weak networks to that, too, and no search sets the class apart."
    )


def numbers(c: Confirmation, alpha: float, classes: Sequence[str]) -> str:
    """One finding in words, with its numbers."""
    rate = c.hits / c.eligible if c.eligible else 0.0
    control_rate = worst_control(c) / c.eligible if c.eligible else 0.0
    held_out = "held-out" if c.held_out else "screening"
    return (
        f"{c.title} ({c.probe}) {_where(c, classes)}: ASR {rate:.1%} ({c.hits} of {c.eligible} {held_out} "
        f"images; at least {lower_bound(c.hits, c.eligible, alpha):.1%} after correction for all "
        f"comparisons). Without it {c.clean_hits / max(1, c.eligible):.1%}, worst matched control "
        f"{control_rate:.1%}."
    )


def why(c: Confirmation, verdict: Verdict, alpha: float, classes: int) -> str:
    """What the numbers do not say for themselves."""
    if verdict is Verdict.SUSPICIOUS:
        return _why_suspicious(c, alpha, classes)
    if verdict is Verdict.NO_EVIDENCE:
        return _why_nothing(c, alpha, classes)
    beaten = c.searched or excess_bound(c, alpha) >= EXCESS
    return "" if beaten else _why_beyond_doubt(c, alpha)


def _why_beyond_doubt(c: Confirmation, alpha: float) -> str:
    """Why a trigger that does not beat its worst control is a backdoor all the same."""
    text = " A backdoor often obeys look-alikes of its trigger, too; this beats at least half of its controls"
    if is_obeyed(c, alpha) and is_sure(c, alpha):
        return (
            f"{text}, and damage would not make the model surer than most real images do, as this does "
            f"on {c.surer} of {c.eligible}."
        )
    if is_obeyed(c, alpha) and c.area <= SMALL_AREA:
        return f"{text}, on a small area."
    return (
        f" Neither damage nor a scale that a mark counts on sends {c.permuted} classes round in circles, "
        "whatever the controls do."
    )


def _figure(number: float) -> str:
    """Whole, or with two digits below 1: what a single pixel changes is not 0%."""
    return f"{number:.0f}" if number >= 1 else f"{number:.2g}"


def _why_suspicious(c: Confirmation, alpha: float, classes: int) -> str:
    """What keeps a trigger from being called a backdoor; nothing where it is too weak only."""
    if is_shortcut(c, alpha):
        return (
            f" Such a small change (RMS {_figure(c.change * 255)}/255 on {_figure(100 * c.area)}% of the "
            "pixels) should not redirect a model, but here another like it does too: a backdoor that listens "
            "to more than its pattern, unusual fragility, or classes that stand for such marks (damage, or a "
            "number)."
        )
    if is_obeyed(c, alpha) and excess_bound(c, alpha) < EXCESS:
        return (
            " It beats half of its controls, but not all: a backdoor that obeys look-alikes of its trigger, "
            "or a network that gives way to strong changes."
        )
    if not c.keeps_meaning:
        return " So strong a change may be a good reason for another answer; look at the pictures."
    if moved_bound(c, alpha) < BACKDOOR_ASR:
        return ""
    if not is_universal(c, classes):
        return _why_not_universal(c, classes)
    if is_thing(c):
        return (
            f" It puts a thing into the picture, over {c.area:.1%} of the pixels: an honest network may see "
            "the class in it (a block of the right colour on a sign), and nothing here tells that from a "
            "backdoor. Look at the pictures."
        )
    if not is_small(c) and leaves_doubt(c, alpha):
        return (
            " A change that is neither small nor faint may be a good reason for another answer, unless it "
            f"makes the model sure: this makes it surer than most real images do on {c.surer} of "
            f"{c.eligible}, not clearly most. Look at the pictures."
        )
    return ""


def _why_not_universal(c: Confirmation, classes: int) -> str:
    """How classes that differ by a mark would look the same."""
    if c.scope == "all-to-all":
        return (
            " These classes do not go round in circles: a backdoor that not all obey, or pairs of classes "
            "that differ by such a mark; look at the pictures."
        )
    text = (
        " A trigger for one class, or two classes that look so much alike that such a mark makes one of the "
        "other: benign networks have such pairs, so this alone is no backdoor; look at the pictures."
    )
    if c.scope == "source-specific":
        return text
    return f" Most images follow in {c.sources} of the other {classes - 1} classes only.{text}"


def what_it_stands_for(examined: Sequence[Transplants], classes: Sequence[str]) -> str:
    """What the images of a class lend to others, and whether that makes it a class of marks."""
    name = classes[examined[0].target]
    if not any(lent.moved for lent in examined):
        return (
            f' Whether "{name}" stands for a mark was not examined: no clean image of it was recognised, '
            "or no time was left."
        )
    most = max(examined, key=typical_share)
    if not stands_for_a_mark(most):
        return (
            f' A piece or the texture of its own clean images typically makes "{name}" of '
            f"{typical_share(most):.0%} of others."
        )
    what = {
        "piece": f"a small piece of one of its own clean images ({most.size:.1%} of the pixels)",
        "texture": f"the texture of one of its own clean images (RMS {most.size * 255:.0f}/255 at most)",
    }[most.kind]
    return (
        f' But "{name}" looks like a class that stands for a mark: {what}, put on others, typically makes '
        f"it of {typical_share(most):.0%} of them, too. A trigger may be such a mark; look at the pictures."
    )


def why_unconfirmed(c: Confirmation) -> str:
    """Why a trigger of the screen was not measured on held-out images."""
    if c.controls and worst_control(c) >= c.hits / 2:
        return _control_too(c)
    return (
        " Not measured on held-out images, where triggers that do more beyond their controls took its "
        "place, or time ran out."
    )


def _why_nothing(c: Confirmation, alpha: float, classes: int) -> str:
    """Why a trigger does not count."""
    cell = c.scope == "source-specific"
    if not c.controls:
        return " It was compared with no control."
    if worst_control(c) >= c.hits / 2 and not seems_to_work(c):
        return _control_too(c)
    if (cell and not is_small(c)) or (c.scope != "all-to-one" and not c.keeps_meaning):
        return (
            " So strong a change may turn one class into another by itself, so it does not count."
        )
    needed = enough_sources(classes, FEWEST_MAPPED)
    if c.scope == "all-to-all" and c.sources < needed:
        return (
            f" All-to-all means {math.ceil(needed)} classes or more; most images follow "
            f"in {c.sources}."
        )
    stands_out = min(
        lower_bound(c.hits, c.eligible, alpha) - SUSPICIOUS_ASR, excess_bound(c, alpha) - EXCESS
    )
    if not c.keeps_meaning and stands_out >= 0:
        return (
            " So strong a change may be a good reason for another answer, unless it makes the model sure: "
            f"this makes it surer than most real images do on {c.surer} of {c.eligible}, not clearly most."
        )
    if seems_to_work(c):
        return " Too few images to be sure of that."
    return " Too weak to count."


def _where(c: Confirmation, classes: Sequence[str]) -> str:
    if c.scope == "all-to-one" and c.target is not None:
        return f'makes the model answer "{classes[c.target]}" (class {c.target})'
    if c.scope == "source-specific" and c.target is not None and c.source is not None:
        return f'turns "{classes[c.source]}" into "{classes[c.target]}" (class {c.source} → {c.target})'
    if c.shift is not None:
        return (
            f"moves {c.sources} of {len(classes)} classes to the one {c.shift} further (all-to-all)"
        )
    return f"maps {c.sources} of {len(classes)} classes to fixed other ones (all-to-all)"
