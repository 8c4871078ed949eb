"""Several methods side by side: the order, the budget, what is told, what is written."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from auditor.cli.requests import METHODS, Purification, method_names
from auditor.errors import ModelError, UnsuitableModel, UsageError
from auditor.images.opening import open_images
from auditor.inputs import GivenInput
from auditor.models.load import load_model
from auditor.probes import choose
from auditor.progress import Notify
from auditor.purification import purify as purification
from auditor.purification.comparison import OverBudget, ranked_by_goals
from auditor.purification.purify import Options, purify
from auditor.purifiers import PURIFIERS, Purifier
from auditor.purifiers.base import Purified, Task, parted, seeded
from auditor.report import from_json, to_json
from auditor.results.purify import Check, PurifyResult
from auditor.scanning.scan import Options as ScanOptions
from auditor.triggers.patch import Square
from tests.changeable import CHANNELS, CLASSES, PROBE, TARGET, classifier, samples, saved
from tests.planted import SIZE


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
class Broken(Fake):
    def purify(self, task: Task, notify: Notify) -> Purified:
        raise RuntimeError("no decomposition")


@dataclass(frozen=True, kw_only=True)
class Dropping(Fake):
    into: list[torch.Tensor] | None = None

    def purify(self, task: Task, notify: Notify) -> Purified:
        drawn = torch.nn.functional.dropout(torch.ones(50))
        if self.into is not None:
            self.into.append(drawn)
        return super().purify(task, notify)


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


ANOTHER = Square(colour="white", size=3, where="top-left", gap=5)


def run(
    folder: Path, *methods: Purifier, network: torch.nn.Module | None = None, **fields: Any
) -> PurifyResult:
    given = GivenInput(normalize="none")
    scan = ScanOptions(given=given, searches=fields.pop("searches", ()), batch_size=64)
    options = Options(methods=methods, scan=scan, **fields)
    model = load_model(saved(folder, network or classifier()))
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


def test_a_search_that_the_budget_ends_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = purification._Purification._scanned

    def scanned(self: Any, model: Any, source: Any, what: str, **given: Any) -> Any:
        if what == "searching again":
            raise OverBudget
        options = self.options
        self.options = replace(options, scan=replace(options.scan, searches=()))
        try:
            return original(self, model, source, what, **given)
        finally:
            self.options = options

    monkeypatch.setattr(purification._Purification, "_scanned", scanned)
    methods = Informed(label="told", network=benign()), Fake(label="idle")
    result = run(tmp_path, *methods, searches=("search.patch",))
    assert result.contenders[0].name == "told"
    assert result.method is not None
    assert [entry.found for entry in result.method.rounds] == [None]
    assert "not-searched-again" in {caveat.id for caveat in result.caveats}


def test_with_no_result_at_all_the_reasons_are_told(tmp_path: Path) -> None:
    methods = Fake(label="one", refuses=True), Fake(label="two", refuses=True)
    with pytest.raises(ModelError, match=r"one: nothing here can be masked\. two: nothing"):
        run(tmp_path, *methods)
    assert not (tmp_path / "out.pt").exists()


def test_a_method_that_fails_takes_none_with_it(tmp_path: Path) -> None:
    result = run(tmp_path, Fake(label="cured", network=benign()), Broken(label="broken"))
    assert [entry.name for entry in result.contenders] == ["cured"]
    (missing,) = result.not_compared
    assert missing.why == "it failed: RuntimeError: no decomposition"


@pytest.mark.parametrize("beside", [True, False])
def test_a_class_is_not_given_up_for_the_others(tmp_path: Path, beside: bool) -> None:
    """The loss of ACC is allowed; that it is one class is not."""
    network = benign()
    with torch.no_grad():
        list(network.parameters())[-1][0] = -1e4
    methods = [Fake(label="forgetful", network=network)]
    methods += [Fake(label="cured", network=benign())] if beside else []
    result = run(tmp_path, *methods, max_acc_drop=0.5)
    sentence = "Class 0 is forgotten: 0 of the "
    if beside:
        assert [entry.name for entry in result.contenders] == ["cured", "forgetful"]
        assert result.contenders[1].missed[0].startswith(sentence)
        recognised = result.contenders[1].recognised
        assert recognised is not None
        assert recognised[0] == 0
        assert sum(recognised) == result.contenders[1].correct
    assert result.goals.met is beside
    assert (result.written is not None) is beside
    if not beside:
        assert result.goals.missed[0].startswith(sentence)
    assert from_json(to_json(result)) == result


def with_another(network: torch.nn.Sequential) -> torch.nn.Sequential:
    """It obeys `ANOTHER`, too."""
    linear = network[-1]
    assert isinstance(linear, torch.nn.Linear)
    with torch.no_grad():
        linear.weight.view(CLASSES, CHANNELS, SIZE // 8, SIZE // 8)[TARGET, 1, 0, 0] = 24.0
    return network


def test_judge_triggers_have_no_say(tmp_path: Path) -> None:
    """Of two that are equal by all that could be known, the first is taken, and misses the goals."""
    judge = replace(choose(PROBE).probes[0], id="judge", triggers=(ANOTHER,))
    half = Fake(label="half", network=with_another(classifier(strength=0)))
    whole = Fake(label="whole", network=benign())
    result = run(tmp_path, half, whole, judge_probes=(judge,), network=with_another(classifier()))
    assert [outcome.origin for outcome in result.outcomes] == ["found", "judge"]
    assert [entry.name for entry in result.contenders] == ["half", "whole"]
    assert not result.goals.met
    assert result.contenders[0].missed == result.goals.missed
    assert result.contenders[1].missed == ()
    assert result.written is None


def test_without_evidence_the_order_of_the_user_counts(tmp_path: Path) -> None:
    seen: list[Task] = []
    model = load_model(saved(tmp_path, classifier(strength=0)))
    scan = ScanOptions(given=GivenInput(normalize="none"), searches=(), batch_size=64)
    methods = (
        Fake(label="ruin", network=ruined()), Fake(label="first", network=benign(), seen=seen),
        Fake(label="idle"),
    )  # fmt: skip
    options = Options(methods=methods, scan=scan, anyway=True)
    source = open_images(samples(tmp_path, 160))
    result = purify(model, choose(PROBE).probes, source, None, options)
    assert [entry.name for entry in result.contenders] == ["first", "idle", "ruin"]
    assert [c.text for c in result.caveats if c.id == "uninformed"] == [
        "No trigger is known, as a precaution. Nothing shows that anything was removed."
    ]
    assert "unchanged-idle" in {caveat.id for caveat in result.caveats}


def test_dropout_begins_with_the_seed(tmp_path: Path) -> None:
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        for _ in range(state):
            run(tmp_path, Dropping(label="a"), Dropping(label="b", into=made))
    assert all(torch.equal(drawn, made[0]) for drawn in made)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with seeded(0):
        torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before), "the user's own draws go on"


def test_the_stress_test_is_run_on_each(tmp_path: Path) -> None:
    result = run(tmp_path, Fake(label="idle"), Fake(label="cured", network=benign()), stress=True)
    assert result.stress is not None
    by_name = {entry.name: entry for entry in result.contenders}
    assert by_name["cured"].retuned == result.stress.rows[0].hits_after
    assert by_name["idle"].retuned is not None


def test_the_order_of_methods() -> None:
    before = Check(step=0, asr=1.0, acc=0.90, loss=0.0)
    best_first = [
        (0.00, 0.90, True),
        (0.02, 0.90, True),  # within half of the goal: counts for less than accuracy…
        (0.00, 0.885, True),
        (0.04, 0.90, True),  # …beyond it, the distance in goals counts
        (0.00, 0.86, True),
        (0.50, 0.90, True),
        (0.00, 0.10, True),  # a ruin has no backdoor either
        (0.00, 0.90, False),
    ]

    def rank(asr: float, acc: float, met: bool, known: bool = True) -> tuple[float, ...]:
        check = Check(step=0, asr=asr, acc=acc, loss=0.0)
        goals = {"max_asr": 0.05, "max_acc_drop": 0.03}
        return ranked_by_goals(check, before, met=met, known=known, **goals)

    ranks = [rank(*entry) for entry in best_first]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)
    blind = {rank(asr, acc, met, known=False) for asr, acc, met in best_first if met}
    assert len(blind) == 1, "nothing is known that could tell them apart"
    assert max(blind) < rank(0.0, 0.9, met=False, known=False)


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
