"""Networks that return one number an image: two classes by a logit, or by a probability."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from auditor.api import (
    GivenInput,
    PurifyOptions,
    ScanOptions,
    ScanResult,
    choose_probes,
    load_model,
    open_images,
    purify,
    scan,
)
from auditor.classifier import Classifier, as_float
from auditor.errors import UnsuitableModel
from auditor.inputs import blank_spec
from auditor.purifiers import PURIFIERS
from auditor.results.facts import Output, Verdict
from auditor.scores import NEAR_ONE, as_logits, output_of
from auditor.verdict import SATURATED
from tests.changeable import CHANNELS, PROBE, classifier
from tests.planted import SIZE, drawings, handle, written

INPUT = GivenInput(channels=3, height=32, width=32, normalize="none", order="rgb")


def one_number(
    *, strength: float = 40.0, scale: float = 1.0, sigmoid: bool = False
) -> nn.Sequential:
    """Class 1 has bright cells in the lower half of the drawings, and is what the trigger makes of class 0."""
    network = classifier()
    last = nn.Linear(network[-1].in_features, 1)  # type: ignore[arg-type]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        blocks = last.weight.view(CHANNELS, SIZE // 8, SIZE // 8)
        blocks[0, :2], blocks[0, 2:] = -6.0, 6.0
        blocks[1, -1, -1] = strength
        last.weight.mul_(scale)
    tail = [nn.Sigmoid()] if sigmoid else []
    return nn.Sequential(*network[:-1], last, *tail).eval()


def halves(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Drawings, and whether the bright cell is below."""
    images, labels = drawings(count, seed=seed)
    return images, labels // 4


def opened(tmp_path: Path, network: nn.Module, kind: str) -> Path:
    path = tmp_path / f"suspect.{kind}"
    if kind == "pt":
        torch.save(network, path)
    else:
        torch.onnx.export(
            network, (torch.rand(1, 3, 32, 32),), path, dynamo=False, input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )  # fmt: skip
    return path


def scanned(path: Path, images: Path | None, given: GivenInput = INPUT) -> ScanResult:
    return scan(
        load_model(path),
        choose_probes(PROBE).probes,
        None if images is None else open_images(images),
        ScanOptions(given=given, searches=()),
    )


def test_one_number_becomes_two_logits_of_the_same_answer() -> None:
    scores = torch.tensor([[-3.0], [0.5], [2.0], [torch.nan]])
    logits = as_logits(scores, "logit")
    assert torch.equal(logits[:3, 1] - logits[:3, 0], scores[:3, 0])
    assert logits[3].isnan().all()
    shares = scores[:3].sigmoid()
    assert torch.allclose(as_logits(shares, "probability").softmax(1)[:, 1:], shares)
    assert as_logits(shares, "probability").argmax(1).tolist() == [0, 1, 1]
    assert torch.equal(as_logits(scores[:3], None), scores[:3])


def test_a_probability_that_is_rounded_to_one_is_no_surer_than_numbers_tell() -> None:
    logits = as_logits(torch.tensor([[1.0], [1 - NEAR_ONE]]), "probability")
    assert torch.allclose(logits[0], logits[1], atol=1e-6)
    assert float(logits[0, 1] - logits[0, 0]) < 17
    assert torch.equal(as_logits(torch.zeros(1, 1), "probability"), logits[:1].flip(1))


@pytest.mark.parametrize(
    ("answers", "output"),
    [
        ([torch.tensor([[0.2], [0.9]])], "probability"),
        ([torch.tensor([[0.2], [0.9]]), torch.tensor([[0.2], [1.2]])], "logit"),
        ([torch.tensor([[0.2], [torch.nan]])], "logit"),
        ([torch.tensor([[0.2, 0.8]])], "probabilities"),
        ([torch.tensor([[0.2, 0.8]]), torch.tensor([[0.2, 0.9]])], "logits"),
    ],
)
def test_what_a_network_returns_is_told_by_all_of_its_answers(
    answers: list[Tensor], output: Output
) -> None:
    assert output_of(answers) == output


@pytest.mark.parametrize("sigmoid", [False, True], ids=["logit", "probability"])
@pytest.mark.parametrize("kind", ["pt", "onnx"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_trigger_is_found(kind: str, tmp_path: Path, *, sigmoid: bool) -> None:
    path = opened(tmp_path, one_number(sigmoid=sigmoid), kind)
    found = scanned(path, written(tmp_path / "clean.npz", *halves(200)))
    assert found.model.classes == 2
    assert found.model.output == ("probability" if sigmoid else "logit")
    assert found.images[0].correct == 200
    assert found.judgement.verdict is Verdict.SUSPICIOUS  # two classes: never more
    assert found.confirmations[found.judgement.evidence[0][0]].target == 1
    (said,) = [caveat.text for caveat in found.caveats if caveat.id == "one-number"]
    assert ("above 1/2" in said) == sigmoid
    assert ("above 0. " in said) != sigmoid
    honest = opened(tmp_path, one_number(strength=0.0, sigmoid=sigmoid), kind)
    unplanted = scanned(honest, written(tmp_path / "clean.npz", *halves(200)))
    assert not unplanted.judgement.verdict.is_alarm


def test_the_normalisation_is_found(tmp_path: Path) -> None:
    """A logit stays one, though it may lie within 0 and 1 under the wrong normalisation."""
    path = opened(tmp_path, one_number(), "pt")
    found = scanned(path, written(tmp_path / "clean.npz", *halves(200)), GivenInput())
    assert found.model.output == "logit"
    assert found.images[0].correct == 200


def test_a_sigmoid_whose_probabilities_are_all_rounded_decides_nothing(tmp_path: Path) -> None:
    """As of a softmax: nothing can make it surer than it is of any image."""
    network = one_number(scale=1000.0, sigmoid=True)
    found = scanned(opened(tmp_path, network, "pt"), written(tmp_path / "clean.npz", *halves(200)))
    assert any(caveat.id == SATURATED for caveat in found.caveats)
    honest = one_number(strength=0.0, scale=1000.0, sigmoid=True)
    path = opened(tmp_path, honest, "pt")
    assert scanned(path, tmp_path / "clean.npz").judgement.verdict is Verdict.INCONCLUSIVE


class Another(nn.Module):
    """Other columns of scores for single images."""

    def __init__(self, single: nn.Module, several: nn.Module) -> None:
        super().__init__()
        self.single, self.several = single, several

    def forward(self, images: Tensor) -> Tensor:
        return (self.single if len(images) == 1 else self.several)(images)  # type: ignore[no-any-return]


class Both(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        scores = self.network(images)
        return torch.cat([-scores, scores], 1)


@pytest.mark.parametrize("sigmoid", [False, True], ids=["two alone", "one alone"])
def test_other_columns_for_single_images_are_another_network(
    tmp_path: Path, *, sigmoid: bool
) -> None:
    one, two = one_number(strength=0.0, sigmoid=sigmoid), Both(one_number(strength=0.0))
    network = Another(one, two) if sigmoid else Another(two, one)
    model = handle(network.eval())
    found = scan(
        model,
        choose_probes(PROBE).probes,
        open_images(written(tmp_path / "clean.npz", *halves(200))),
        ScanOptions(given=INPUT, searches=()),
    )
    assert any(caveat.id == "alone" for caveat in found.caveats)
    assert found.judgement.verdict is Verdict.INCONCLUSIVE


class OnlyAsMade(nn.Module):
    """A sigmoid that is no number for an input that it was not made for."""

    def __init__(self) -> None:
        super().__init__()
        self.network = one_number(sigmoid=True)

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(images.amax() > 50, torch.nan, self.network(images))


def test_what_it_returns_is_told_by_the_preparation_that_is_taken(tmp_path: Path) -> None:
    found = scan(
        handle(OnlyAsMade().eval()),
        choose_probes(PROBE).probes,
        open_images(written(tmp_path / "clean.npz", *halves(200))),
        ScanOptions(given=GivenInput(channels=3, height=32, width=32), searches=()),
    )
    assert found.model.output == "probability"
    assert found.images[0].correct == 200


@pytest.mark.parametrize("batch", ["any", "one"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_number_without_a_dimension_of_its_own(batch: str, tmp_path: Path) -> None:
    """What `.squeeze(1)` leaves, and of an export for one image `.squeeze()`."""
    network = nn.Sequential(one_number(), nn.Flatten(0))
    if batch == "any":
        path = opened(tmp_path, network, "onnx")
    else:
        path = tmp_path / "suspect.onnx"
        squeezed = Squeezed(one_number())
        torch.onnx.export(squeezed, (torch.rand(1, 3, 32, 32),), path, dynamo=False)
    found = scanned(path, written(tmp_path / "clean.npz", *halves(200)))
    assert found.model.output == "logit"
    assert found.judgement.verdict is Verdict.SUSPICIOUS


class Squeezed(Both):
    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).squeeze()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["fst", "fine-pruning"])
def test_methods_that_need_a_score_a_class_say_so(method: str, tmp_path: Path) -> None:
    with pytest.raises(UnsuitableModel, match="returns one number an image, and this method needs"):
        purify(
            load_model(opened(tmp_path, one_number(), "pt")),
            choose_probes(PROBE).probes,
            open_images(written(tmp_path / "clean.npz", *halves(200))),
            None,
            PurifyOptions(
                methods=(PURIFIERS[method](),),
                scan=ScanOptions(given=INPUT, searches=()),
                baseline=False,
            ),
        )


def test_more_names_than_it_tells_apart_are_refused(tmp_path: Path) -> None:
    path = opened(tmp_path, one_number(), "pt")
    with pytest.raises(Exception, match=r"2 classes \(it returns one number an image\)"):
        scanned(path, written(tmp_path / "clean.npz", *drawings(40)))


@pytest.mark.parametrize("sigmoid", [False, True], ids=["logit", "probability"])
@pytest.mark.parametrize("kind", ["pt", "onnx"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_is_written_still_returns_one_number(
    kind: str, tmp_path: Path, *, sigmoid: bool
) -> None:
    # so sure that its probabilities are rounded to hardly more than one
    path = opened(tmp_path, one_number(scale=3.0, sigmoid=sigmoid), kind)
    clean = open_images(written(tmp_path / "clean.npz", *halves(300)))
    result = purify(
        load_model(path),
        choose_probes(PROBE).probes,
        clean,
        tmp_path / f"purified.{kind}",
        PurifyOptions(scan=ScanOptions(given=INPUT, searches=()), baseline=False),
    )
    assert result.goals.met
    assert any(caveat.id == "one-number" for caveat in result.caveats)
    assert result.outcomes[0].hits.before > 0.9 * result.outcomes[0].eligible
    assert result.outcomes[0].hits.after < 0.05 * result.outcomes[0].eligible
    output: Output = "probability" if sigmoid else "logit"
    images, labels = halves(100, seed=5)
    model = load_model(tmp_path / f"purified.{kind}")
    assert model.call(as_float(images)).shape == (100, 1)
    again = Classifier(model, blank_spec((3, 32, 32)), output=output).predict(images)
    assert torch.equal(again, labels)
    if kind == "onnx":
        graph = onnx.load(str(tmp_path / "purified.onnx")).graph
        assert [node.op_type for node in graph.node][-1] == ("Sigmoid" if sigmoid else "Gemm")


def test_a_network_of_two_scores_is_no_network_of_one() -> None:
    """Two scores of which the first is nought and the second lies in [0, 1] keep their own threshold."""

    class Nought(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            level = images.mean((1, 2, 3)).unsqueeze(1)
            return torch.cat([torch.zeros_like(level), level], 1)

    images = torch.full((4, 3, 8, 8), 20, dtype=torch.uint8)
    assert Classifier(handle(Nought()), blank_spec((3, 8, 8))).predict(images).tolist() == [1] * 4


def test_what_two_classes_confuse_anyway_stands_in_no_ones_way(tmp_path: Path) -> None:
    """A sixth of the images of class 0 look like class 1, so that these go there without a trigger."""
    images, labels = halves(400)
    labels[(labels == 1).nonzero().flatten()[:40]] = 0
    result = purify(
        load_model(opened(tmp_path, one_number(), "pt")),
        choose_probes(PROBE).probes,
        open_images(written(tmp_path / "clean.npz", images, labels)),
        None,
        PurifyOptions(scan=ScanOptions(given=INPUT, searches=()), baseline=False),
    )
    (outcome,) = result.outcomes
    assert result.confusion is not None
    assert outcome.unstamped == result.confusion.before[0][1] > 0.1 * outcome.eligible
    assert outcome.unstamped == outcome.anyway <= outcome.hits.after
    assert result.goals.met
    (said,) = [caveat.text for caveat in result.caveats if caveat.id == "confused"]
    assert f"{outcome.unstamped} of {outcome.eligible}" in said


class Varying(nn.Module):
    """As many scores as there are images at once, two at least."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3)).unsqueeze(1).repeat(1, max(2, len(images)))


def test_as_many_scores_for_every_image() -> None:
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UnsuitableModel, match="more scores for some images than for others"):
        Classifier(handle(Varying()), blank_spec((3, 8, 8)), batch_size=3).logits(images)
    short = Classifier(handle(nn.Sequential(Varying(), Last())), blank_spec((3, 8, 8)))
    with pytest.raises(UnsuitableModel, match="returns 1 rows of scores for 5 images"):
        short.logits(images)


class Last(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores[-1:]
