"""Purifying a backdoor that nobody declared: what a search finds is unlearnt, and searched again."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from auditor.classifier import Classifier
from auditor.images import open_images
from auditor.inputs import GivenInput
from auditor.models.load import load_model
from auditor.purifiers import PURIFIERS
from auditor.purify import RELATIVES, ROUNDS, Options, purify
from auditor.results import PurifyResult, Verdict
from auditor.scan import Options as ScanOptions
from tests.conftest import PairFiles, SuspectPair
from tests.test_purify import Recorder

pytestmark = pytest.mark.slow

SEARCHED = ("search.margin", "search.patch")


@pytest.fixture(scope="module")
def purified(
    pair_files: PairFiles, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PurifyResult, Path]:
    output = tmp_path_factory.mktemp("searched") / "purified.pt"
    options = Options(
        scan=ScanOptions(given=GivenInput(normalize="none"), searches=SEARCHED),
        baseline=False,
        write_anyway=True,
    )
    model = load_model(pair_files.suspect)
    return purify(model, (), open_images(pair_files.samples), output, options), output


def test_the_true_trigger_goes_though_nobody_named_it(
    purified: tuple[PurifyResult, Path], pair_files: PairFiles, suspect_pair: SuspectPair
) -> None:
    result, output = purified
    target, images, labels = suspect_pair.target, suspect_pair.images, suspect_pair.labels
    assert result.evidence.judgement.verdict in (Verdict.BACKDOOR, Verdict.SUSPICIOUS)
    assert {entry.target for entry in result.outcomes} == {target}
    stamped = suspect_pair.trigger(images.float() / 255)
    rates, accuracies = [], []
    for path in (pair_files.suspect, output):
        network = Classifier(load_model(path), result.preprocessing.spec)
        rates.append(float((network.predict(stamped)[labels != target] == target).float().mean()))
        accuracies.append(float((network.predict(images) == labels).float().mean()))
    assert rates[0] > 0.9
    assert rates[1] <= 0.1
    assert accuracies[1] >= accuracies[0] - 0.05


def test_it_searched_again_until_nothing_was_found(purified: tuple[PurifyResult, Path]) -> None:
    method = purified[0].method
    assert method is not None
    assert method.rounds
    assert len(method.rounds) == ROUNDS or method.rounds[-1].found == ()
    assert [entry.seed for entry in method.rounds] == [n + 1 for n in range(len(method.rounds))]


def test_a_found_trigger_brings_relatives_of_other_seeds(
    pair_files: PairFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purifier that does nothing is told more every round, and the rounds end."""
    recorder = Recorder()
    monkeypatch.setitem(PURIFIERS._entries, "recorder", Recorder)
    options = Options(
        methods=(recorder,),
        scan=ScanOptions(given=GivenInput(normalize="none"), searches=SEARCHED),
        baseline=False,
    )
    model = load_model(pair_files.suspect)
    result = purify(model, (), open_images(pair_files.samples), None, options)
    assert 1 < len(recorder.tasks) <= ROUNDS
    told = [{repr(known.stamped.trigger) for known in task.known} for task in recorder.tasks]
    patches = sum(search == "search.patch" for search, _ in RELATIVES)
    assert len(told[0]) > patches
    assert all(fewer < more for fewer, more in itertools.pairwise(told))
    assert result.written is None
