"""Results of purifications that never ran, for tests of everything that reads them.

`sample_purify()` met its goals on the CIFAR-like model of `sample_result`; the numbers fit together.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from auditor.results.facts import Caveat, Counts, SplitFacts, Verdict
from auditor.results.purify import (
    PURIFY_SCHEMA,
    Case,
    CaseExhibit,
    ChangedChannel,
    ChangedTensor,
    Check,
    Confusion,
    Contender,
    Embedding,
    Goals,
    MaskLayer,
    MethodFacts,
    NotCompared,
    Outcome,
    Point,
    PurifyResult,
    Round,
    Stage,
    Stress,
    StressRow,
    Written,
)
from auditor.results.scan import Confirmation, ControlCount, ScanResult
from tests.sample_result import CHECKER, CLASSES, png, sample_result, scene

STICKER = "Stamp(image='sticker.png', size=4, at='top-left', native=32)"
JUDGE = 200
ELIGIBLE = 180
RIGHT, RIGHT_AFTER, RIGHT_TUNED = 187, 185, 183
BINS = 20


def sample_purify(*, class_names: tuple[str, ...] = CLASSES) -> PurifyResult:
    """Goals met: masks sufficed, a judge trigger fell with the found one, a file was written."""
    before = on_judge_images(sample_result(), "suspect.onnx")
    after = on_judge_images(sample_result(Verdict.NO_EVIDENCE), "suspect.purified.onnx")
    evidence = sample_result()
    result = PurifyResult(
        schema=PURIFY_SCHEMA,
        model=evidence.model,
        preprocessing=evidence.preprocessing,
        fit=SplitFacts(images=300, members=(30,) * 10, digest="5c" * 32),
        judge=SplitFacts(images=JUDGE, members=(20,) * 10, digest="a7" * 32),
        labelled=True,
        evidence=evidence,
        before=before,
        after=after,
        method=MethodFacts(
            name="nft",
            title="Neural mask fine-tuning",
            source="Karim et al., Augmented Neural Fine-Tuning, ECCV 2024 (arXiv:2407.10052)",
            settings={"lr": "0.01", "lower bound": "0.05 to 0.5", "mask penalty": "0.001"},
            stages=(masks_stage(),),
            seconds=71.4,
            trained=4736,
            rounds=(
                Round(known=1, seed=1, found=("The <patch> that the search found for class 3",)),
                Round(known=2, seed=2, found=()),
            ),
        ),
        contenders=(),
        not_compared=(),
        kept_back=0,
        accuracy=Counts(before=RIGHT, after=RIGHT_AFTER, baseline=RIGHT_TUNED),
        outcomes=(found_outcome(), judge_outcome()),
        masks=mask_layers(19),
        channels=tuple(
            ChangedChannel(
                layer=f"layer{1 + n % 4}.{n % 2}.bn2", channel=(7 * n) % 64, mask=0.01 * n
            )
            for n in range(20)
        ),
        tensors=(),
        exhibits=(case_exhibit(6),),
        embedding=sample_embedding(600),
        confusion=Confusion(
            before=matrix(RIGHT, 1),
            after=matrix(RIGHT_AFTER, 2),
            lost=RIGHT - RIGHT_AFTER + 3,
            gained=3,
        ),
        stress=Stress(
            probe="patch.checker",
            trigger=CHECKER,
            target=0,
            poisoned=4,
            clean=36,
            epochs=5,
            lr=0.001,
            eligible=ELIGIBLE,
            total=JUDGE,
            rows=(
                StressRow(model="purified", hits_before=3, hits_after=11, correct_after=184),
                StressRow(model="fine-tuned", hits_before=74, hits_after=171, correct_after=182),
            ),
        ),
        goals=Goals(max_asr=0.10, max_acc_drop=0.03, missed=()),
        written=Written(
            name="suspect.purified.onnx",
            sha256="9b01d6f4c3a85e27b914fd60a7c2388e51d0b96f74ea23c8105f6b9d2e4777aa",
            bytes=44_784_128,
            format="ONNX",
            tensors=38,
            largest_difference=2.9e-06,
            compared=64,
        ),
        caveats=(
            Caveat(
                id="few-images",
                text="Only 200 judge images: a true ASR of up to 5.6% can show as 2.2%.",
            ),
        ),
        provenance=replace(
            evidence.provenance,
            command="auditor purify suspect.onnx --clean samples --judge-trigger sticker.png --stress",
            seconds=148.2,
            options={"holdout": "0.4", "max_images": "768", "threads": "2"},
        ),
    )
    return with_names(result, class_names)


def with_names(result: PurifyResult, names: tuple[str, ...]) -> PurifyResult:
    """The same result, its classes called otherwise in every scan."""
    model = replace(result.model, class_names=names)

    def renamed(scan: ScanResult) -> ScanResult:
        return replace(scan, model=replace(scan.model, class_names=names))

    return replace(
        result,
        model=model,
        evidence=renamed(result.evidence),
        before=renamed(result.before),
        after=None if result.after is None else renamed(result.after),
    )


def on_judge_images(scan: ScanResult, name: str) -> ScanResult:
    """The scan as if on 200 images."""
    images = tuple(
        replace(
            facts,
            screen=100,
            confirm=100,
            screen_members=(10,) * 10,
            confirm_members=(10,) * 10,
            predicted=(20,) * 10,
            correct=None if facts.correct is None else RIGHT,
            files=JUDGE,
            unreadable=(),
        )
        for facts in scan.images
    )
    said = scan.judgement.headline.replace("95.1% (214 of 225", "95.6% (86 of 90")
    said = said.replace("44.0% (99 of 225", "44.4% (40 of 90")
    return replace(
        scan,
        model=replace(scan.model, name=name),
        judgement=replace(scan.judgement, headline=said),
        images=images,
        responses=tuple(
            replace(
                r,
                images=100,
                flips=min(100, r.flips),
                hits={k: round(hits * 0.4) for k, hits in r.hits.items() if round(hits * 0.4)},
            )
            for r in scan.responses
        ),
        confirmations=tuple(
            replace(
                c,
                eligible=90,
                hits=round(c.hits * 0.4),
                clean_hits=round(c.clean_hits * 0.4),
                controls=tuple(scaled(k, c) for k in c.controls),
            )
            for c in scan.confirmations
        ),
    )


def scaled(control: ControlCount, of: Confirmation) -> ControlCount:
    """The control on 0.4 of the images, as many of its hits shared with the trigger as before."""
    hits, both = round(of.hits * 0.4), round((of.hits - control.gained) * 0.4)
    own = round(control.hits * 0.4)
    return replace(control, hits=own, gained=hits - both, lost=own - both)


def found_outcome() -> Outcome:
    return Outcome(
        origin="found",
        probe="patch.checker",
        title="Checkerboard in a corner",
        trigger=CHECKER,
        scope="all-to-one",
        target=0,
        eligible=ELIGIBLE,
        hits=Counts(before=171, after=3, baseline=74),
    )


def judge_outcome() -> Outcome:
    return Outcome(
        origin="judge",
        probe="sticker.png",
        title="A given image",
        trigger=STICKER,
        scope="all-to-one",
        target=0,
        eligible=ELIGIBLE,
        hits=Counts(before=177, after=4, baseline=79),
    )


def masks_stage() -> Stage:
    return Stage(
        what="masks",
        settings={"lower bound": "0.05", "lr": "0.01"},
        steps=400,
        images=51_200,
        seconds=63.2,
        checks=tuple(
            Check(
                step=50 * n,
                asr=round(max(0.016, 0.96 * math.exp(-n * n / 9)), 4),
                acc=round(0.93 - 0.012 * math.sin(n), 4),
                loss=round(2.1 * math.exp(-n / 3), 4),
            )
            for n in range(9)
        ),
        outcome="ASR 1.6% and accuracy 92.4% on the 60 kept-back fit images: good enough, kept.",
        kept=True,
    )


def weights_stage() -> Stage:
    return Stage(
        what="weights",
        settings={"lr": "0.0005", "layers": "all"},
        steps=200,
        images=25_600,
        seconds=31.0,
        checks=(
            Check(step=0, asr=0.44, acc=0.92, loss=0.9),
            Check(step=100, asr=0.09, acc=0.91, loss=0.31),
            Check(step=200, asr=0.03, acc=0.915, loss=0.2),
        ),
        outcome="ASR 3.0% and accuracy 91.5% on the 60 kept-back fit images: kept.",
        kept=True,
    )


def mask_layers(count: int, kind: str = "BatchNorm") -> tuple[MaskLayer, ...]:
    """Layers of 64 to 512 channels, the last ones changed more."""
    draw = random.Random(3)  # noqa: S311
    layers = []
    for number in range(count):
        channels = 64 << min(3, number * 4 // max(count, 1))
        masks = [
            draw.uniform(0.02, 0.12)
            if draw.random() < 0.1 * number / count
            else draw.betavariate(14, 1)
            for _ in range(channels)
        ]
        masks = [round(mask, 4) for mask in masks]
        bins = [0] * BINS
        for mask in masks:
            bins[min(BINS - 1, int(mask * BINS))] += 1
        layers.append(
            MaskLayer(
                layer=f"layer{1 + number * 4 // max(count, 1)}.{number % 5}.{kind.lower()}",
                kind=kind,
                channels=channels,
                lower_bound=0.02,
                histogram=tuple(bins),
                near_zero=sum(mask < 0.1 for mask in masks),
                near_one=sum(mask > 0.9 for mask in masks),
                smallest=min(masks),
                mean=round(sum(masks) / channels, 6),
            )
        )
    return tuple(layers)


def matrix(right: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """20 images a class, `right` of all on the diagonal."""
    draw = random.Random(seed)  # noqa: S311
    rows = [[20 if row == column else 0 for column in range(10)] for row in range(10)]
    for _ in range(JUDGE - right):
        row = draw.randrange(10)
        while rows[row][row] < 10:
            row = draw.randrange(10)
        rows[row][row] -= 1
        rows[row][(row + draw.randrange(1, 10)) % 10] += 1
    return tuple(map(tuple, rows))


def sample_embedding(count: int) -> Embedding:
    """Ten clusters in a ring; stamped images lie in the first before, and at home after."""
    draw = random.Random(5)  # noqa: S311

    def near(label: int) -> tuple[float, float]:
        angle = label * math.pi / 5 + 0.3
        x, y = draw.gauss(34 * math.cos(angle), 4.2), draw.gauss(30 * math.sin(angle), 4.0)
        return round(x, 3), round(y, 3)

    points = []
    for number in range(count):
        label, stamped = number % 10, number >= count * 2 // 3
        caught = stamped and draw.random() < 0.95
        points.append(
            Point(
                label=label,
                stamped=stamped,
                before=near(0) if caught else near(label),
                after=near(label),
                predicted_before=0 if caught else label,
                predicted_after=label,
            )
        )
    return Embedding(
        features="penultimate features", trigger=CHECKER, perplexity=30.0, points=tuple(points)
    )


def case_exhibit(count: int) -> CaseExhibit:
    return CaseExhibit(
        probe="patch.checker",
        trigger=CHECKER,
        target=0,
        difference_png=png(32, 32, lambda x, y: (255,) * 3 if x >= 29 and y >= 29 else (0, 0, 0)),
        cases=tuple(
            Case(
                label=label,
                clean_png=scene(seed, stamped=False),
                stamped_png=scene(seed, stamped=True),
                clean_before=label,
                clean_before_probability=0.991 - 0.02 * seed,
                stamped_before=0,
                stamped_before_probability=0.9991 - 0.003 * seed,
                clean_after=label,
                clean_after_probability=0.973 - 0.03 * seed,
                stamped_after=label if seed != 4 else 0,
                stamped_after_probability=0.941 - 0.07 * seed,
            )
            for seed, label in enumerate((5, 8, 3, 7, 1, 9, 2, 4)[:count])
        ),
    )


# ---- variants


def missed() -> PurifyResult:
    """The judge trigger still works and accuracy fell; nothing was written."""
    result = sample_purify()
    return replace(
        result,
        outcomes=(
            replace(found_outcome(), hits=Counts(before=171, after=5, baseline=74)),
            replace(judge_outcome(), hits=Counts(before=177, after=63, baseline=79)),
        ),
        accuracy=Counts(before=RIGHT, after=174, baseline=RIGHT_TUNED),
        confusion=Confusion(before=matrix(RIGHT, 1), after=matrix(174, 2)),
        after=on_judge_images(sample_result(Verdict.SUSPICIOUS), "suspect.onnx"),
        goals=Goals(
            max_asr=0.10,
            max_acc_drop=0.03,
            missed=(
                "sticker.png still has an ASR of 35.0% (63 of 180; the goal is 10.0% or less).",
                "Accuracy fell by 6.5 points, from 93.5% to 87.0% (the goal is 3.0 or less).",
            ),
        ),
        masks=mask_layers(4),
        channels=(),
        embedding=sample_embedding(90),
        written=None,
        stress=None,
    )


def untouched() -> PurifyResult:
    """The scan found nothing, so there was nothing to remove."""
    result = sample_purify()
    clean = on_judge_images(sample_result(Verdict.NO_EVIDENCE), "suspect.onnx")
    return replace(
        result,
        evidence=sample_result(Verdict.NO_EVIDENCE),
        before=clean,
        after=None,
        method=None,
        accuracy=Counts(before=RIGHT, after=RIGHT),
        outcomes=(),
        masks=(),
        channels=(),
        exhibits=(),
        embedding=None,
        confusion=None,
        stress=None,
        written=None,
    )


def untouched_but_missed() -> PurifyResult:
    """Nothing was found, and yet the judge trigger works."""
    outcome = replace(judge_outcome(), hits=Counts(before=177, after=177))
    return replace(
        untouched(),
        outcomes=(outcome,),
        goals=Goals(
            max_asr=0.10,
            max_acc_drop=0.03,
            missed=("sticker.png has an ASR of 98.3% (177 of 180; the goal is 10.0% or less).",),
        ),
    )


def compared() -> PurifyResult:
    """Three methods were compared, and one had no time left."""
    result = sample_purify()
    found, judged = result.outcomes

    def contender(name: str, hits: tuple[int, int], correct: int, **fields: object) -> Contender:
        values: dict[str, object] = {
            "title": name.upper(), "trained": 4736, "seconds": 71.4, "retuned": 11, "missed": (),
            "choosing": Check(step=0, asr=0.01, acc=0.93, loss=0.0), **fields,
        }  # fmt: skip
        return Contender(name=name, hits=hits, correct=correct, **values)  # type: ignore[arg-type]

    missed = (f"{found.probe} still redirects 40 of {ELIGIBLE} judge images.",)
    return replace(
        result,
        kept_back=75,
        contenders=(
            contender("nft", (found.hits.after, judged.hits.after), RIGHT_AFTER),
            contender("fst", (2, 3), RIGHT_AFTER - 2, trained=11_173_962, seconds=30.2, retuned=44),
            contender(
                "fine-<b>pruning",
                (40, 90),
                RIGHT_AFTER - 9,
                trained=512,
                retuned=170,
                missed=missed,
            ),
        ),
        not_compared=(
            NotCompared(name="i-bau", title="I-BAU", why="the budget of <600> s was spent"),
        ),
    )


def unlabelled() -> PurifyResult:
    """The suspect's own predictions stand for labels."""
    result = sample_purify()
    return replace(
        result,
        labelled=False,
        masks=mask_layers(4),
        channels=(),
        embedding=None,
        accuracy=Counts(before=JUDGE, after=189, baseline=186),
        confusion=Confusion(before=matrix(JUDGE, 1), after=matrix(189, 2)),
    )


def weights() -> PurifyResult:
    """Masks did not suffice; the weights were tuned too, and there is no baseline."""
    result = sample_purify()
    assert result.method is not None
    tried = replace(
        masks_stage(), kept=False, outcome="ASR 44.0% on the 60 kept-back fit images: not enough."
    )
    return replace(
        result,
        method=replace(result.method, stages=(tried, weights_stage())),
        masks=(),
        channels=(),
        tensors=tuple(
            ChangedTensor(
                name=f"layer4.{n}.conv.weight", elements=2_359_296, change=0.021 / (n + 1)
            )
            for n in range(40)
        ),
        accuracy=Counts(before=RIGHT, after=RIGHT_AFTER),
        outcomes=tuple(replace(o, hits=replace(o.hits, baseline=None)) for o in result.outcomes),
    )


def transformer() -> PurifyResult:
    """Masks of LayerNorm and Linear layers, features that hooks cannot reach."""
    return replace(
        sample_purify(),
        masks=(*mask_layers(4, "LayerNorm"), *mask_layers(4, "Linear")),
        channels=(),
        embedding=replace(sample_embedding(90), features="logits"),
    )


def sized(layers: int) -> PurifyResult:
    """So many layers with masks."""
    return replace(
        sample_purify(),
        masks=mask_layers(layers),
        channels=(),
        embedding=sample_embedding(30),
    )


VARIANTS = {
    "met": sample_purify,
    "missed": missed,
    "untouched": untouched,
    "untouched_but_missed": untouched_but_missed,
    "compared": compared,
    "unlabelled": unlabelled,
    "weights": weights,
    "transformer": transformer,
    "one_layer": lambda: sized(1),
    "many_layers": lambda: sized(60),
}
