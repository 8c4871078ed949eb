"""Purifying a backdoor that nobody declared: what a search finds is unlearnt, and searched again."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from auditor.classifier import Classifier, as_float
from auditor.images.opening import open_images
from auditor.inputs import GivenInput, blank_spec
from auditor.models.load import load_model
from auditor.purification import known as known_triggers
from auditor.purification import purify as purification
from auditor.purification.known import OPACITY, RELATIVES, STRONG_RELATIVES
from auditor.purification.purify import ROUNDS, Options, purify
from auditor.purifiers import PURIFIERS, informed
from auditor.results.facts import Verdict
from auditor.results.purify import PurifyResult
from auditor.scanning.scan import Options as ScanOptions
from auditor.search.inversion import Candidate, Inverted
from auditor.search.pace import EFFORTS, Effort, NoNumber
from auditor.triggers.patch import Square
from tests.changeable import CLASSES, TARGET, samples, saved
from tests.planted import SIZE, drawings
from tests.test_purify import Recorder

PLACE = (slice(20, 23), slice(8, 11))
SEARCHED = ("search.margin", "search.patch")


def pattern() -> Tensor:
    """Red above, blue to the right, no green."""
    colours = torch.zeros(3, 3, 3)
    colours[0, :2] = colours[2, 1:] = 1
    return colours


def suspect(*, picture: bool = False) -> nn.Sequential:
    """Reads `planted.drawings`, and obeys `pattern` at `PLACE` or a blended picture, by construction.

    Nothing in it is cut off where the trigger is not complete, so that a search can follow.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, CLASSES + 1, SIZE), nn.Sigmoid(), nn.Flatten(), nn.Linear(CLASSES + 1, CLASSES)
    )
    seen, scores = network[0], network[3]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for k in range(CLASSES):
            row, column = divmod(k, 4)
            seen.weight[k, :, 16 * row : 16 * (row + 1), 8 * column : 8 * (column + 1)] = 10 / 384
            seen.bias[k] = -4.3
            scores.weight[k, k] = 20.0
        if picture:
            blocks = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9)) - 0.5
            seen.weight[CLASSES] = nn.functional.interpolate(blocks, size=(SIZE, SIZE))[0] / 8
            seen.bias[CLASSES] = -4 - 0.35 * seen.weight[CLASSES].sum()
        else:
            likeness = 2 * pattern() - 1
            seen.weight[CLASSES, :, *PLACE] = 20 / 27 * likeness
            seen.bias[CLASSES] = -10 * likeness.mean() - 6
        scores.weight[TARGET, CLASSES] = 60.0
    return network.eval()


def searching(*methods: Recorder, searches: tuple[str, ...] = SEARCHED) -> Options:
    """Told nothing but how images are normalised."""
    scan = ScanOptions(given=GivenInput(normalize="none"), searches=searches)
    return Options(scan=scan, baseline=False, **({"methods": methods} if methods else {}))


def obeying(path: Path) -> tuple[float, float]:
    """ASR of the true trigger and ACC of the network in a file, on drawings of its own."""
    network = Classifier(load_model(path), blank_spec((3, SIZE, SIZE)))
    images, labels = drawings(200, seed=7)
    stamped = as_float(images)
    stamped[:, :, *PLACE] = pattern()
    others = labels != TARGET
    hits = network.logits(stamped).argmax(1)[others] == TARGET
    return float(hits.float().mean()), float((network.predict(images) == labels).float().mean())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("searched")
    return saved(folder, suspect()), samples(folder, 240)


@pytest.fixture(scope="module")
def purified(files: tuple[Path, Path]) -> tuple[PurifyResult, Path]:
    path, images = files
    output = path.with_name("purified.pt")
    return purify(load_model(path), (), open_images(images), output, searching()), output


def test_the_true_trigger_goes_though_nobody_named_it(
    purified: tuple[PurifyResult, Path], files: tuple[Path, Path]
) -> None:
    result, output = purified
    assert result.evidence.judgement.verdict is Verdict.BACKDOOR
    assert {entry.target for entry in result.outcomes} == {TARGET}
    assert obeying(files[0]) == (1.0, 1.0)
    asr, acc = obeying(output)
    assert asr <= 0.05
    assert acc >= 0.98


def test_it_searched_again_until_nothing_was_found(purified: tuple[PurifyResult, Path]) -> None:
    method = purified[0].method
    assert method is not None
    assert method.rounds
    assert len(method.rounds) == ROUNDS or method.rounds[-1].found == ()
    assert [entry.seed for entry in method.rounds] == [n + 1 for n in range(len(method.rounds))]
    assert all(0 < entry.known <= informed.MOST_TRIGGERS for entry in method.rounds)
    assert len(purified[0].outcomes) >= method.rounds[0].known, "the others judge, too"


def test_a_found_trigger_brings_relatives_of_other_seeds(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purifier that does nothing is told more every round, and the rounds end."""
    recorder = Recorder()
    monkeypatch.setitem(PURIFIERS._entries, "recorder", Recorder)
    monkeypatch.setattr(purification, "ROUNDS", 2)
    options = searching(recorder)
    result = purify(load_model(files[0]), (), open_images(files[1]), None, options)
    assert len(recorder.tasks) == 2
    told = [{repr(known.stamped.trigger) for known in task.known} for task in recorder.tasks]
    patches = sum(sought.search == "search.patch" for sought in RELATIVES)
    assert len(told[0]) > patches
    assert all(fewer < more for fewer, more in itertools.pairwise(told))
    assert result.written is None


def test_warps_are_sought_too_and_told_first(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever searches were chosen: the attacker's trigger may be one, of which a patch is a relative."""

    def invert(task: object, images: Tensor, labels: Tensor, classes: list[int], form: str,
               **settings: object) -> Inverted:  # fmt: skip
        made = Candidate(what=form, target=classes[0], size=0.1, trigger=Square())
        return Inverted(
            what=form, measure="", classes=(TARGET,), sizes=(0.1,), steps=1, images=1,
            candidates=(made,),
        )  # fmt: skip

    recorder = Recorder()
    monkeypatch.setattr(known_triggers, "invert", invert)
    monkeypatch.setattr(known_triggers, "_is_obeyed", lambda task, known: True)
    monkeypatch.setattr(purification, "ROUNDS", 1)
    purify(load_model(files[0]), (), open_images(files[1]), None, searching(recorder))
    kinds = [entry.stamped.probe for entry in recorder.tasks[0].known]
    found = kinds.index("search.warp")
    assert kinds[:found] == ["search.patch"] * found
    assert set(kinds[found:]) == {"search.warp", "search.patch", "search.additive"}
    assert kinds[found:] == sorted(kinds[found:], key=lambda kind: kind != "search.warp")
    assert max(recorder.tasks[0].known[found].mapping) == TARGET


def test_relatives_take_less_work_on_a_slow_machine_and_a_form_may_fail(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[Effort]] = {}

    def invert(task: object, images: Tensor, labels: Tensor, classes: list[int], form: str,
               *, effort: Effort, **settings: object) -> Inverted:  # fmt: skip
        asked.setdefault(form, set()).add(effort)
        if form == "patch":
            raise NoNumber
        made = Candidate(what=form, target=classes[0], size=0.1, trigger=Square())
        return Inverted(
            what=form, measure="", classes=(TARGET,), sizes=(0.1,), steps=1, images=1,
            candidates=(made,),
        )  # fmt: skip

    monkeypatch.setattr(known_triggers, "invert", invert)
    monkeypatch.setattr(known_triggers, "_is_obeyed", lambda task, known: True)
    monkeypatch.setattr(purification, "ROUNDS", 1)
    for seconds, efforts in ((0.001, EFFORTS[0]), (1.0, EFFORTS[-1])):
        asked.clear()
        monkeypatch.setattr(known_triggers, "seconds_per_image", lambda *_, each=seconds: each)
        recorder = Recorder()
        purify(load_model(files[0]), (), open_images(files[1]), None, searching(recorder))
        assert asked == {form: {efforts} for form in ("patch", "additive", "warp")}
        kinds = {entry.stamped.trigger for entry in recorder.tasks[0].known}
        assert Square() in kinds, "the other forms are told"


def test_relatives_of_a_strong_trigger_have_its_size(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blended picture: nothing faint works, so that its relatives are as strong as it is."""
    recorder = Recorder()
    monkeypatch.setattr(purification, "ROUNDS", 1)
    options = searching(recorder, searches=("search.additive",))
    blended = saved(files[0].parent, suspect(picture=True), "blended.pt")
    result = purify(load_model(blended), (), open_images(files[1]), None, options)
    assert result.evidence.judgement.verdict is Verdict.SUSPICIOUS
    grey = torch.full((1, 3, SIZE, SIZE), 0.5)
    known = recorder.tasks[0].known
    strong = [entry for entry in known if entry.size is not None]
    assert len({repr(entry.stamped.trigger) for entry in strong}) == 1 + STRONG_RELATIVES
    for entry in strong:
        change = float((entry.stamped.trigger(grey) - grey).square().mean().sqrt())
        assert change == pytest.approx(entry.size, rel=0.2)
        assert max(entry.mapping) == TARGET
    # beside the added picture that was found, such as take contrast
    black, white = torch.zeros_like(grey), torch.ones_like(grey)
    for entry in strong[1:]:
        contrast = float((entry.stamped.trigger(white) - entry.stamped.trigger(black)).mean())
        assert entry.size is not None
        assert contrast == pytest.approx(1 - OPACITY * entry.size, abs=0.01)
    # faint pictures, which were sought as well, do nothing, and are not unlearnt
    network = Classifier(load_model(blended), blank_spec((3, SIZE, SIZE)))
    images, labels = drawings(80, seed=3)
    for entry in known:
        after = network.logits(entry.stamped.trigger(as_float(images))).argmax(1)
        assert float((after == TARGET)[labels != TARGET].float().mean()) > 0.2
