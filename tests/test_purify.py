"""One purification through the library: what is judged, what is refused, what is told to whom."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import auditor.purification.purify as purification
from auditor.classifier import Classifier, as_float
from auditor.errors import ImageError, ProbeError, UnsuitableModel
from auditor.images.opening import open_images
from auditor.images.source import ImageSource
from auditor.inputs import GivenInput, blank_spec
from auditor.measure import Stamped, all_to_one
from auditor.models.base import ModelHandle
from auditor.models.load import load_model
from auditor.probes import Probe, choose
from auditor.purification.difference import difference
from auditor.purification.embedding import MOST_IMAGES, embed
from auditor.purification.purify import Options, purify
from auditor.purification.stress import POISONED, counted, stress
from auditor.purifiers import PURIFIERS, informed
from auditor.purifiers.base import Known, Purified, Purifier, Task
from auditor.purifiers.features import anchor_layers
from auditor.report import purify_view as view
from auditor.report import to_markdown
from auditor.results.purify import PurifyResult
from auditor.results.scan import MarginSearch
from auditor.scanning.scan import Options as ScanOptions
from auditor.search import searches
from auditor.search.margin import search_margins
from auditor.search.searches import MARGIN
from auditor.triggers.patch import Square
from tests.changeable import CLASSES, GREY, PROBE, TARGET, WHITE, classifier, opened, samples, saved
from tests.planted import Planted, drawings, handle, written

IMAGES, LABELS = drawings(120, CLASSES)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the map of features, which takes longer than all the rest, and in fewer steps."""
    attempts = (
        informed.Attempt(what="masks", lr=0.08, steps=12),
        informed.Attempt(what="weights", lr=2e-3, steps=30),
    )
    monkeypatch.setattr(informed, "ATTEMPTS", attempts)
    monkeypatch.setitem(PURIFIERS._entries, "recorder", Recorder)
    monkeypatch.setattr(purification, "embed", lambda *arguments, **options: None)


class Recorder(Purifier):
    """Changes nothing, and remembers what it was told."""

    title = "Nothing"
    source = "a test"
    informed = True

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def settings(self) -> dict[str, str]:
        return {}

    def purify(self, task: Task, notify: Any) -> Purified:
        self.tasks.append(task)
        name, tensor = next(iter(task.classifier.model.tensors().items()))
        return Purified(tensors={name: tensor.clone()})


def options(**fields: Any) -> Options:
    given = GivenInput(normalize="none")
    scan = ScanOptions(given=given, searches=(), batch_size=64)
    return Options(scan=scan, **{"baseline": False, **fields})


@pytest.fixture
def suspect(tmp_path: Path) -> ModelHandle:
    return load_model(saved(tmp_path, classifier()))


def run(
    model: ModelHandle, source: ImageSource, *, probes: str = PROBE, judge: ImageSource | None = None,
    **fields: Any,
) -> PurifyResult:  # fmt: skip
    return purify(model, choose(probes).probes, source, None, options(**fields), judge=judge)


def test_the_purifier_sees_none_of_the_judge_images(suspect: ModelHandle, tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(suspect, open_images(samples(tmp_path, 120)), methods=(recorder,))
    (task,) = recorder.tasks
    told = {image.numpy().tobytes() for image in task.images}
    everything = {image.numpy().tobytes() for image in IMAGES}
    assert len(told) == result.fit.images == 72
    assert told < everything
    assert len(everything - told) == result.judge.images == 48
    assert result.fit.members == tuple(torch.bincount(task.labels, minlength=8).tolist())
    by_pixels = {image.numpy().tobytes(): int(k) for image, k in zip(IMAGES, LABELS, strict=True)}
    assert [by_pixels[image.numpy().tobytes()] for image in task.images] == task.labels.tolist()


def test_the_purifier_is_told_what_the_scan_found_and_what_is_wanted(
    suspect: ModelHandle, tmp_path: Path
) -> None:
    recorder = Recorder()
    run(
        suspect, open_images(samples(tmp_path, 120)), methods=(recorder,), max_asr=0.2,
        max_acc_drop=0.1, seed=9,
    )  # fmt: skip
    (task,) = recorder.tasks
    assert (task.max_asr, task.max_acc_drop, task.seed) == (0.2, 0.1, 9)
    (known,) = task.known
    assert known.stamped.probe == PROBE
    assert known.mapping == all_to_one(TARGET, CLASSES).mapping


def test_a_purifier_that_does_nothing_misses_the_goal(suspect: ModelHandle, tmp_path: Path) -> None:
    result = run(suspect, open_images(samples(tmp_path, 120)), methods=(Recorder(),))
    assert not result.goals.met
    assert result.outcomes[0].hits.before == result.outcomes[0].hits.after
    assert result.written is None
    assert result.confusion is not None
    assert result.confusion.before == result.confusion.after
    unstamped = view.outcomes(result)[0].unstamped
    assert unstamped is not None
    said = result.before.images[0].predicted[TARGET] - result.confusion.before[TARGET][TARGET]
    assert unstamped.before.hits == said
    assert any("shows a backdoor" in sentence for sentence in result.goals.missed)


def test_margins_are_searched_once_a_model(
    suspect: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[ModelHandle] = []

    def search(classifier: Classifier, classes: int, **options: Any) -> MarginSearch:
        searched.append(classifier.model)
        return search_margins(classifier, classes, **options)

    monkeypatch.setattr(searches, "search_margins", search)
    scan = ScanOptions(given=GivenInput(normalize="none"), searches=(MARGIN,), batch_size=64)
    asked = Options(scan=scan, baseline=False, methods=(Recorder(),))
    source = open_images(samples(tmp_path, 120))
    result = purify(suspect, choose(PROBE).probes, source, None, asked)
    assert result.evidence.margin is not None
    assert result.before.margin == result.evidence.margin
    assert result.after is not None
    assert result.after.margin is not None
    assert [model is suspect for model in searched] == [True, False]


def test_without_labels_the_predictions_stand_for_them(
    suspect: ModelHandle, tmp_path: Path
) -> None:
    recorder = Recorder()
    result = run(suspect, open_images(samples(tmp_path, 120, labelled=False)), methods=(recorder,))
    (task,) = recorder.tasks
    by_pixels = {image.numpy().tobytes(): int(k) for image, k in zip(IMAGES, LABELS, strict=True)}
    assert [by_pixels[image.numpy().tobytes()] for image in task.images] == task.labels.tolist()
    assert (result.labelled, result.accuracy.before) == (False, result.judge.images)


def test_unreadable_images_do_not_count(suspect: ModelHandle, tmp_path: Path) -> None:
    """A folder whose files are mostly damaged has too few images, whatever the number of files."""
    folder = tmp_path / "c"
    folder.mkdir()
    for index, image in enumerate(drawings(40, CLASSES, seed=1)[0]):
        path = folder / f"{index:03}.png"
        if index < 3:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        else:
            path.write_bytes(b"damaged")
    fit = open_images(samples(tmp_path, 120))
    with pytest.raises(ImageError, match="too few"):
        run(suspect, fit, judge=open_images(folder), methods=(Recorder(),))


def test_few_fit_images_are_helped_by_made_ones(
    suspect: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the fit images are too few to show it, the trigger is looked for on made images."""
    monkeypatch.setattr("auditor.scanning.families.IMPRESSION_SECONDS", 0.1)
    few = open_images(samples(tmp_path, 6, seed=3))
    judge = open_images(samples(tmp_path, 64, seed=4))
    recorder = Recorder()
    result = run(suspect, few, judge=judge, methods=(recorder,))
    assert {caveat.id for caveat in result.caveats} == {"made-evidence", "unchanged-recorder"}
    assert "clean" not in {facts.family for facts in result.evidence.images}
    assert [entry.stamped.probe for entry in recorder.tasks[0].known] == [PROBE]
    assert (result.fit.images, result.judge.images) == (6, 64)
    assert result.outcomes[0].eligible == 64 - 8


def test_networks_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsuitableModel, match="can be scanned, but not purified"):
        run(handle(Planted(behaviour="all-to-one")), open_images(samples(tmp_path, 120)))


def test_a_source_specific_trigger_is_known_as_one(tmp_path: Path) -> None:
    """Class 1 to the target, and no other: the mapping says so, and so does the outcome."""
    network = classifier()
    with torch.no_grad():  # the trigger is worth less than the evidence of all classes but one
        linear = network[-1]
        linear.weight[TARGET].view(6, 4, 4)[1, -1, -1] = 10.0
        linear.weight[1].view(6, 4, 4)[0] *= 0.6
    model = load_model(saved(tmp_path, network))
    recorder = Recorder()
    result = run(model, open_images(samples(tmp_path, 400)), methods=(recorder,))
    assert result.outcomes, result.evidence.judgement.headline
    assert {(o.scope, o.source, o.target) for o in result.outcomes} == {
        ("source-specific", 1, TARGET)
    }
    assert recorder.tasks[0].known[0].mapping == (-1, TARGET, *(-1,) * 6)
    assert result.outcomes[0].eligible == result.judge.members[1]


# ---- which triggers count


def test_judge_triggers_get_the_target_that_they_have(suspect: ModelHandle, tmp_path: Path) -> None:
    probe = choose(PROBE).probes[0]
    named = Probe(**{**vars(probe), "id": "user.named", "title": "Named"})
    recorder = Recorder()
    result = run(
        suspect, open_images(samples(tmp_path, 120)), methods=(recorder,), judge_probes=(named,)
    )
    assert [(o.origin, o.probe, o.target, o.found_too) for o in result.outcomes] == [
        ("found", PROBE, TARGET, False), ("judge", "user.named", TARGET, True),
    ]  # fmt: skip
    assert [entry.stamped.probe for entry in recorder.tasks[0].known] == [PROBE]


def test_a_judge_trigger_is_unseen_if_it_stamps_something_else(
    suspect: ModelHandle, tmp_path: Path
) -> None:
    white = Square(colour=(255, 255, 255), size=3, where="bottom-right")
    larger = Square(colour="white", size=5, where="bottom-right")
    assert repr(white) != repr(WHITE)
    named = tuple(
        Probe(**{**vars(choose(PROBE).probes[0]), "id": f"user.{name}", "triggers": (trigger,)})
        for name, trigger in (("white", white), ("grey", GREY), ("larger", larger))
    )
    result = run(
        suspect, open_images(samples(tmp_path, 120)), methods=(Recorder(),), judge_probes=named
    )
    assert [(o.probe, o.found_too) for o in result.outcomes if o.origin == "judge"] == [
        ("user.white", True), ("user.grey", True), ("user.larger", False),
    ]  # fmt: skip


# ---- the stress test and the map


def told(network: Any, part: slice) -> Task:
    suspect = Classifier(opened(network), blank_spec((3, 32, 32)), batch_size=64)
    return Task(
        classifier=suspect, images=IMAGES[part], labels=LABELS[part], classes=CLASSES, known=(),
        max_asr=0.05, max_acc_drop=0.03, seed=0,
    )  # fmt: skip


KNOWN = Known(
    stamped=Stamped(probe="p", title="P", trigger=WHITE),
    mapping=all_to_one(TARGET, CLASSES).mapping,
)


def test_the_stress_test_tells_a_hidden_backdoor_from_none() -> None:
    fit, judge = told(classifier(), slice(0, 72)), told(classifier(), slice(72, None))
    eligible = int((judge.labels != TARGET).sum())
    before = counted(judge.classifier, judge, KNOWN)
    assert (before.hits, before.correct) == (eligible, len(judge.images))
    benign = told(classifier(strength=0), slice(72, None)).classifier
    assert counted(benign, judge, KNOWN).hits < 0.2 * eligible
    rivals = [("purified", judge.classifier), ("fine-tuned", benign)]
    found = stress(rivals, fit, judge, KNOWN, notify=lambda *_: None)  # type: ignore[arg-type]
    assert (found.poisoned, found.clean, found.total) == (POISONED, 72, 48)
    assert (found.eligible, found.target, found.probe) == (eligible, TARGET, "p")
    assert [row.hits_before for row in found.rows] == [eligible, counted(benign, judge, KNOWN).hits]
    again = counted(judge.classifier, judge, KNOWN)
    assert again == before  # the models themselves are as they were


def test_the_map_shows_every_image_four_times() -> None:
    before = told(classifier(), slice(0, 40))
    after = told(classifier(strength=0), slice(0, 40)).classifier
    arguments = (before.classifier, after, before.images, before.labels, WHITE)
    found = embed(*arguments, seed=1 << 32)  # more than NumPy's generators take
    assert found is not None
    assert len(found.points) == 80
    assert found.features == "penultimate features"
    assert [point.stamped for point in found.points] == [False] * 40 + [True] * 40
    assert [point.label for point in found.points[:40]] == before.labels.tolist()
    stamped = [point for point in found.points if point.stamped]
    assert all(point.predicted_before == TARGET for point in stamped)
    assert [point.predicted_after for point in stamped] == (
        after.predict(WHITE(as_float(before.images))).tolist()
    )
    assert embed(*arguments, seed=0) == found
    few = (before.classifier, after, before.images[:7], before.labels[:7], WHITE)
    assert embed(*few, seed=0) is None
    assert MOST_IMAGES >= 100


def test_the_map_is_of_scores_where_a_file_that_was_read_back_shows_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An ONNX graph that onnxruntime alone computes has no features."""
    before = told(classifier(), slice(0, 40))
    after = told(classifier(strength=0), slice(0, 40)).classifier
    monkeypatch.setattr(after.model, "layers", lambda inputs: [], raising=False)
    assert anchor_layers(before.classifier, before.images)
    assert not anchor_layers(after, before.images)
    found = embed(before.classifier, after, before.images, before.labels, WHITE, seed=0)
    assert found is not None
    assert found.features == "logits"


# ---- lasting promises


def test_the_same_images_twice_are_no_other_images(tmp_path: Path) -> None:
    """Where every image is there twice, each counts once."""
    images, labels = drawings(60, CLASSES)
    np.savez(
        tmp_path / "twice.npz",
        images=torch.cat([images, images]).permute(0, 2, 3, 1).numpy(),
        labels=torch.cat([labels, labels]).numpy(),
    )
    source = open_images(tmp_path / "twice.npz")
    model = load_model(saved(tmp_path, classifier()))
    result = run(model, source, methods=(Recorder(),))
    assert (result.fit.images, result.judge.images) == (36, 24)


def test_pictures_that_come_to_the_same_do_not_judge_one_another(tmp_path: Path) -> None:
    """Stored in two ways, so that only their pixels tell."""
    images, labels = drawings(60, CLASSES)
    for number, suffix in enumerate(("png", "bmp")):
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = tmp_path / "c" / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(
                folder / f"{number}{index}.{suffix}"
            )
    model = load_model(saved(tmp_path, classifier()))
    result = run(model, open_images(tmp_path / "c"), methods=(Recorder(),))
    (text,) = [c.text for c in result.caveats if c.id == "shared-images"]
    left_out, judged = map(int, re.findall(r"\d+", text))
    assert result.judge.images == judged - left_out
    assert result.fit.images + result.judge.images == 60


def test_options_do_not_share_state() -> None:
    assert replace(options(), seed=1).seed == 1
    assert Options().methods == (informed.Informed(),)


def test_a_trigger_that_cannot_be_judged_is_a_missed_goal(
    suspect: ModelHandle, tmp_path: Path
) -> None:
    """Of the judge images all are of the target, so that none could be redirected."""
    images, labels = drawings(400, CLASSES, seed=3)
    path = tmp_path / "judge.npz"
    written(path, images[labels == TARGET], labels[labels == TARGET])
    result = run(
        suspect, open_images(samples(tmp_path, 120)), judge=open_images(path),
        methods=(Recorder(),), write_anyway=True, stress=True,
    )  # fmt: skip
    assert [(o.probe, o.eligible) for o in result.outcomes] == [(PROBE, 0)]
    assert result.goals.missed[0].startswith(f"{PROBE} was found, and cannot be judged")
    assert result.stress is None
    assert view.outcomes(result) == []
    assert "cannot be judged" in to_markdown(result)


def test_a_judge_trigger_needs_no_control(suspect: ModelHandle, tmp_path: Path) -> None:
    """It is measured, and held against nothing; one that cannot be stamped is refused."""
    judged = choose(PROBE).probes[0]
    alone = replace(judged, id="my.own", triggers=(OwnControl(),))
    images = open_images(samples(tmp_path, 120))
    result = run(suspect, images, methods=(Recorder(),), judge_probes=(alone,))
    assert [(o.origin, o.hits.before > 0) for o in result.outcomes][-1] == ("judge", True)
    large = replace(judged, triggers=(Unstampable(),))
    with pytest.raises(ProbeError, match="cannot be stamped on the judge images: too large"):
        run(suspect, images, methods=(Recorder(),), judge_probes=(large,))


class OwnControl(Square):
    """The planted square, whose control is itself."""

    def stamp(self, images: torch.Tensor) -> torch.Tensor:
        return WHITE.stamp(images)

    def control(self, seed: int) -> Square:
        return self


class Unstampable(Square):
    def stamp(self, images: torch.Tensor) -> torch.Tensor:
        raise ProbeError("too large")


def test_all_changed_tensors_are_counted_and_what_was_zero_is_said(tmp_path: Path) -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 3, 1) for _ in range(12)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    nn.init.zeros_(network[0].bias)  # type: ignore[arg-type]
    own = {name: tensor.detach() for name, tensor in network.named_parameters()}
    changed = {name: tensor + 0.5 for name, tensor in own.items()}
    tensors = difference(Purified(tensors=changed), own).tensors
    assert len(tensors) == 24
    assert (tensors[0].name, tensors[0].change) == ("0.bias", None)
    assert all(tensor.change is not None and tensor.change > 0 for tensor in tensors[1:])
