"""What the page and the summary of an inspection say, in words."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.inspecting.record import Ability, Content, Inspection

UNSAFE = (
    "auditor did not open this file, and ran nothing of it. Whoever opens it the usual way runs what its "
    "author chose, or reads something else than a reviewer does."
)
INERT = (
    "No class, function or file that opening it would need can do anything but hold numbers. This says "
    "nothing of backdoors in its numbers: that is what auditor scan is for."
)


def headline(found: Inspection) -> str:
    """What the finding means."""
    return UNSAFE if found.dangerous else INERT


def finding_lines(content: Content) -> list[str]:
    """What is wrong with the file, each as a sentence begins."""
    return [f"{text[:1].upper()}{text[1:]}" for text in content.findings]


def fact_rows(content: Content) -> Iterator[tuple[str, str]]:
    """What the file holds, a name and a value each."""
    if content.what:
        yield "Holds", content.what
    if content.tensors is not None:
        numbers = "" if content.parameters is None else f", {content.parameters:,} numbers"
        yield "Tensors", f"{content.tensors:,}{numbers}"
    if content.dtypes:
        yield "Types", ", ".join(f"{count:,} {name}" for name, count in content.dtypes.items())
    if content.classes is not None:
        yield "Classes", classes_words(content.classes)
    if size := input_words(content):
        yield "Input", size


def classes_words(classes: int) -> str:
    """How many classes; of one number an image, what that means."""
    return "one number an image (two classes)" if classes == 1 else f"{classes:,}"


def input_words(content: Content) -> str:
    """Channels, height and width, as far as the file says."""
    channels, height, width = content.input_size
    if height is not None and width is not None:
        return f"{'?' if channels is None else channels}×{height}×{width}, fixed by the file"
    colours = "" if channels is None else f"{channels} channels, "
    if content.side is not None:
        return f"{colours}made for images of {content.side}×{content.side}"
    return colours.removesuffix(", ")


def ability_words(ability: Ability) -> str:
    """Whether a command works on the file, and what it needs or why it refuses."""
    words = "works" if ability.works else "refuses it"
    return f"{words}. {ability.why}" if ability.why else words
