"""Several methods side by side: the order, the budget, what is told, what is written."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from auditor import purify as purification
from auditor.cli.requests import METHODS, Purification, method_names
from auditor.comparison import ranked_by_goals
from auditor.errors import ModelError, UnsuitableModel, UsageError
from auditor.images import Notify, open_images
from auditor.inputs import GivenInput
from auditor.models.load import load_model
from auditor.probes import choose
from auditor.purifiers import PURIFIERS, Purifier
from auditor.purifiers.base import Purified, Task, parted
from auditor.purify import Options, purify
from auditor.results import Check, Contender, PurifyResult
from auditor.scan import Options as ScanOptions
from tests.changeable import PROBE, classifier, samples, saved


@dataclass(frozen=True, kw_only=True)
class Fake(Purifier):
    """Gives the bias of the last layer other values, and takes its time."""

    title = "Fake"
    source = "a test"
    label: str = "fake"
    network: Any = None
    """Its weights are the result; None leaves the suspect as it is."""
    seconds: float = 0.0
    refuses: bool = False
    seen: list[Task] | None = None

    @property
    def name(self) -> str:
        return self.label

    def purify(self, task: Task, notify: Notify) -> Purified:
        if self.seen is not None:
            self.seen.append(task)
        if self.refuses:
            raise UnsuitableModel("nothing here can be masked")
        for step in range(20):
            time.sleep(self.seconds / 20)
            notify("faking", step, 20)
        own = task.classifier.model.weights()
        found = own if self.network is None else dict(self.network.named_parameters())
        return Purified(tensors={n: found[n].detach().clone() for n in own}, trained=7)


@dataclass(frozen=True, kw_only=True)
class Informed(Fake):
    informed = True


@dataclass(frozen=True, kw_only=True)
class Greedy(Fake):
    chooses = False


def ruined() -> torch.nn.Module:
    """Answers one class for everything: no backdoor is left, and nothing else."""
    network = classifier(strength=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        list(network.parameters())[-1][0] = 1
    return network


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purification, "embed", lambda *arguments, **options: None)


def run(folder: Path, *methods: Purifier, **fields: Any) -> PurifyResult:
    scan = ScanOptions(given=GivenInput(normalize="none"), searches=(), batch_size=64)
    options = Options(methods=methods, scan=scan, **fields)
    model = load_model(saved(folder, classifier()))
    source = open_images(samples(folder, 160))
    return purify(model, choose(PROBE).probes, source, folder / "out.pt", options)


def benign() -> torch.nn.Module:
    return classifier(strength=0)


def test_the_best_is_written_and_every_method_is_counted(tmp_path: Path) -> None:
    idle = Fake(label="idle")
    cured = Fake(label="cured", network=benign())
    spoilt = Fake(label="spoilt", network=ruined())
    result = run(tmp_path, idle, spoilt, cured)
    assert result.method is not None
    assert result.method.name == "cured"
    assert result.goals.met
    assert result.contenders[0].name == "cured"
    assert result.not_compared == ()
    by_name = {entry.name: entry for entry in result.contenders}
    (outcome,) = result.outcomes
    assert by_name["idle"].hits == (outcome.hits.before,)
    assert by_name["idle"].correct == result.accuracy.before
    assert by_name["cured"].hits == (outcome.hits.after,)
    assert by_name["cured"].correct == result.accuracy.after
    assert any("still redirects" in text for text in by_name["idle"].missed)
    assert any("ACC dropped" in text for text in by_name["spoilt"].missed)
    assert by_name["cured"].missed == ()
    assert by_name["idle"].choosing.asr > 0.9 > by_name["cured"].choosing.asr
    assert result.accuracy.baseline is None
    written = load_model(tmp_path / "out.pt")
    wanted = dict(benign().named_parameters())
    assert all(torch.equal(t, wanted[name]) for name, t in written.weights().items())


def test_of_equals_the_first_is_chosen_and_informed_ones_begin(tmp_path: Path) -> None:
    seen: list[Task] = []
    one = Fake(label="one", network=benign(), seen=seen)
    two = Informed(label="two", network=benign(), seen=seen)
    result = run(tmp_path, one, two)
    assert [entry.name for entry in result.contenders] == ["two", "one"]
    assert [len(task.known) for task in seen] == [1, 1]


def test_images_to_choose_by_are_fitted_on_by_none(tmp_path: Path) -> None:
    seen: list[Task] = []
    run(tmp_path, Fake(label="one", seen=seen), Greedy(label="two", seen=seen))
    choosing, greedy = seen
    parts = parted(len(choosing.images), choosing.seed)
    assert parts.apart
    assert torch.equal(greedy.images, choosing.images[parts.fit])
    assert torch.equal(greedy.labels, choosing.labels[parts.fit])


def test_what_has_no_result_is_listed(tmp_path: Path) -> None:
    result = run(
        tmp_path, Fake(label="quick", network=benign()), Fake(label="refuses", refuses=True),
        Fake(label="slow", network=benign(), seconds=60), Fake(label="late"), time_budget=3,
    )  # fmt: skip
    assert [entry.name for entry in result.contenders] == ["quick"]
    why = {entry.name: entry.why for entry in result.not_compared}
    assert why == {
        "refuses": "nothing here can be masked",
        "slow": "the budget of 3 s was spent",
        "late": "the budget of 3 s was spent",
    }


def test_with_no_result_at_all_the_reasons_are_told(tmp_path: Path) -> None:
    methods = Fake(label="one", refuses=True), Fake(label="two", refuses=True)
    with pytest.raises(ModelError, match=r"one: nothing here can be masked\. two: nothing"):
        run(tmp_path, *methods)
    assert not (tmp_path / "out.pt").exists()


def test_the_stress_test_is_run_on_each(tmp_path: Path) -> None:
    result = run(tmp_path, Fake(label="idle"), Fake(label="cured", network=benign()), stress=True)
    assert result.stress is not None
    by_name = {entry.name: entry for entry in result.contenders}
    assert by_name["cured"].retuned == result.stress.rows[0].hits_after
    assert by_name["idle"].retuned is not None


def contender(asr: float, acc: float, *missed: str) -> Contender:
    return Contender(
        name="n", title="N", trained=1, seconds=1.0, hits=(), correct=0, retuned=None, missed=missed,
        choosing=Check(step=0, asr=asr, acc=acc, loss=0.0),
    )  # fmt: skip


def test_the_order_of_methods() -> None:
    before = Check(step=0, asr=1.0, acc=0.90, loss=0.0)
    best_first = [
        contender(0.00, 0.90),
        contender(0.02, 0.90),  # within half of the goal: counts for less than accuracy…
        contender(0.00, 0.895),
        contender(0.04, 0.90),  # …beyond it, the distance in goals counts
        contender(0.00, 0.86),
        contender(0.50, 0.90),
        contender(0.00, 0.10),  # a ruin has no backdoor either
        contender(0.00, 0.90, "a goal"),
    ]
    ranks = [
        ranked_by_goals(entry, before, max_asr=0.05, max_acc_drop=0.03) for entry in best_first
    ]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)


def test_names_of_methods() -> None:
    assert sorted(METHODS) == list(PURIFIERS)
    assert method_names("all") == METHODS
    assert method_names(" fst, nft ,fst") == ("fst", "nft")
    for text in ("magic", "nft,,fst", "nft,all", ""):
        with pytest.raises(UsageError, match="--method"):
            method_names(text)
    with pytest.raises(UsageError, match='did you mean "fast-fip"'):
        method_names("fastfip")
    with pytest.raises(UsageError, match="--time-budget is for several methods"):
        Purification(methods=("nft",), time_budget=60)
    assert Purification(methods=("nft", "fst"), time_budget=60).time_budget < math.inf


def test_every_method_has_its_own_settings() -> None:
    made = Purification(methods=METHODS).purifiers()
    assert [purifier.name for purifier in made] == list(METHODS)
