"""Results of scans that never ran, for tests of everything that reads results.

`sample_result()` is a BACKDOOR on a CIFAR-like model; the other verdicts are variants of it.
`searched_result()` is one whose trigger nobody declared. The numbers fit together, and the pictures are made without a compressor, so that their bytes are the
same everywhere.
"""

from __future__ import annotations

import base64
import binascii
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

from auditor.results.facts import (
    Candidate,
    Caveat,
    ImageFacts,
    InputSpec,
    ModelFacts,
    Picture,
    Preprocessing,
    Provenance,
    Skipped,
    Verdict,
)
from auditor.results.scan import (
    SCAN_SCHEMA,
    Confirmation,
    ControlCount,
    Exhibit,
    FoundTrigger,
    Inversion,
    Judgement,
    MarginSearch,
    ProbeFacts,
    Reason,
    Response,
    RivalCount,
    ScanResult,
    Transplants,
)

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CHECKER = "Squares(cells='checker', size=3, at='bottom-right', native=32)"
FILTER = "Filter(kind='nashville', amount=1.0)"

Colour = tuple[int, int, int]


def png(width: int, height: int, pixel: Callable[[int, int], Colour]) -> str:
    """A picture of few colours as base64 PNG: a palette, stored without compression."""
    colours: dict[Colour, int] = {}
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        rows += bytes(colours.setdefault(pixel(x, y), len(colours)) for x in range(width))
    palette = b"".join(bytes(colour) for colour in colours)
    stored = (
        b"\x78\x01\x01"
        + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF)
        + bytes(rows)
        + struct.pack(">I", zlib.adler32(bytes(rows)))
    )
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette),
        (b"IDAT", stored),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", binascii.crc32(kind + body))
        for kind, body in chunks
    )
    return base64.b64encode(data).decode("ascii")


def scene(seed: int, *, stamped: bool) -> str:
    """A 32×32 thing before a two-tone background, perhaps with a checkerboard in its corner."""
    draw = random.Random(seed)  # noqa: S311
    far, near, thing, spot = (
        tuple(draw.randrange(low, high, 8) for _ in range(3))
        for low, high in ((150, 240), (70, 160), (30, 120), (10, 60))
    )
    horizon, cx, cy, rx, ry = (
        draw.randrange(14, 22), draw.randrange(13, 19), draw.randrange(14, 19),
        draw.randrange(8, 13), draw.randrange(5, 9),
    )  # fmt: skip

    def pixel(x: int, y: int) -> Colour:
        if stamped and x >= 29 and y >= 29:
            return (255, 255, 255) if (x + y) % 2 == 0 else (0, 0, 0)
        body = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
        shade = 8 * ((x * 7 + y * 5 + seed) % 3)
        base = thing if body <= 1 else far if y < horizon + (x + seed) % 2 else near
        if (x - cx - rx // 2) ** 2 + (y - cy + ry // 3) ** 2 <= 2:
            base = spot
        return (base[0] + shade, base[1] + shade, base[2] + shade)

    return png(32, 32, pixel)


def sample_result(
    verdict: Verdict = Verdict.BACKDOOR, *, class_names: tuple[str, ...] = CLASSES
) -> ScanResult:
    """A result with this verdict."""
    variants = {
        Verdict.BACKDOOR: _backdoor,
        Verdict.SUSPICIOUS: _suspicious,
        Verdict.INCONCLUSIVE: _inconclusive,
        Verdict.NO_EVIDENCE: _no_evidence,
    }
    result = variants[verdict]()
    return replace(result, model=replace(result.model, class_names=class_names))


def _spec(normalize: str, mean: tuple[float, ...], std: tuple[float, ...]) -> InputSpec:
    return InputSpec(channels=3, height=32, width=32, normalize=normalize, mean=mean, std=std)


def _preprocessing() -> Preprocessing:
    cifar = _spec("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    half = _spec("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    plain = _spec("none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Preprocessing(
        spec=cifar,
        source="measured",
        reason="32×32: the size of the images; normalize=cifar10 has the best clean accuracy, "
        "469/500; next half with 462",
        candidates=(
            Candidate(
                spec=cifar,
                images=500,
                correct=469,
                batchnorm_distance=0.0141,
                confidence=0.962,
                agreement=1.0,
            ),
            Candidate(
                spec=half,
                images=500,
                correct=462,
                batchnorm_distance=0.0388,
                confidence=0.951,
                agreement=0.972,
            ),
            Candidate(
                spec=replace(cifar, order="bgr"),
                images=500,
                correct=418,
                batchnorm_distance=0.0912,
                confidence=0.883,
                agreement=0.846,
            ),
            Candidate(
                spec=plain,
                images=500,
                correct=203,
                batchnorm_distance=0.7415,
                confidence=0.711,
                agreement=0.418,
            ),
        ),
    )


def _images() -> ImageFacts:
    return ImageFacts(
        family="clean",
        labelled=True,
        screen=250,
        confirm=250,
        screen_members=(25,) * 10,
        confirm_members=(25,) * 10,
        predicted=(53, 49, 47, 52, 50, 46, 51, 50, 51, 51),
        correct=469,
        digest="b5d4045c3f466fa91fe2cc6abe79232a1a57cdf104f7a26e716e0a1e2789df78",
        files=504,
        unreadable=("dog/0031.png (broken PNG file)", "ship/notes.jpg (not an image)"),
    )


def _probes() -> tuple[ProbeFacts, ...]:
    entries = [
        ("patch.checker", "Checkerboard in a corner", "patch", "quick", 8),
        ("patch.solid", "One-coloured square", "patch", "quick", 8),
        ("patch.white-places", "White square at many places", "patch", "standard", 6),
        ("blend.pictures", "A picture laid over the image", "blend", "standard", 5),
        ("sine.sig", "Stripes of a sine wave (SIG)", "sinusoid", "quick", 4),
        ("colour.filters", "Photo filters", "colour", "standard", 5),
        ("warp.wanet", "Smooth warp (WaNet)", "warp", "standard", 4),
        ("warp.wanet-many", "Smooth warps of more strengths", "warp", "deep", 12),
    ]
    return tuple(
        ProbeFacts(
            id=name,
            title=title,
            kind=kind,
            tier=tier,
            tags=(kind,),
            what=f"{title}, at the places and strengths that were published.",
            why="Published attacks use it, and code that plants it is on the net.",
            known_problems="Small differences of colour or place can make a probe miss a backdoor.",
            references=("https://arxiv.org/abs/1708.06733",),
            triggers=count,
        )
        for name, title, kind, tier, count in entries
    )


def _responses(hits: int, fragile: int) -> tuple[Response, ...]:
    """40 triggers: the first reaches class 0 `hits` times, a filter class 6 `fragile` times."""
    draw = random.Random(7)  # noqa: S311
    responses = []
    for probe in _probes()[:7]:
        for number in range(probe.triggers):
            base = draw.randrange(2, 9)
            counts = {draw.randrange(10): base, draw.randrange(10): draw.randrange(1, 4)}
            trigger = f"{probe.kind.capitalize()}(number={number}, native=32)"
            if probe.id == "patch.checker" and number == 0:
                trigger, counts = CHECKER, {0: hits, 3: 2}
            if probe.id == "colour.filters" and number == 0:
                trigger, counts = FILTER, {6: fragile, 4: 11, 2: 7}
            patch = probe.kind == "patch"
            responses.append(
                Response(
                    probe=probe.id,
                    trigger=trigger,
                    family="clean",
                    images=250,
                    hits=dict(sorted(counts.items())),
                    flips=min(250, sum(counts.values()) + 3),
                    area=9 / 1024 if patch else 0.93,
                    change=0.058 if patch else 0.071,
                )
            )
    return tuple(responses)


def _control(number: int, hits: int, trigger_hits: int, both: int) -> ControlCount:
    return ControlCount(
        trigger=f"Squares(cells='random', seed={number}, size=3, at='bottom-right', native=32)",
        hits=hits,
        gained=trigger_hits - both,
        lost=hits - both,
    )


def _checker(hits: int, controls: tuple[int, ...]) -> Confirmation:
    return Confirmation(
        probe="patch.checker",
        title="Checkerboard in a corner",
        trigger=CHECKER,
        family="clean",
        scope="all-to-one",
        target=0,
        sources=9,
        held_out=True,
        eligible=225,
        hits=hits,
        clean_hits=1,
        controls=tuple(_control(n, k, hits, k) for n, k in enumerate(controls)),
        area=9 / 1024,
        change=0.058,
    )


def _filter() -> Confirmation:
    return Confirmation(
        probe="colour.filters",
        title="Photo filters",
        trigger=FILTER,
        family="clean",
        scope="all-to-one",
        target=6,
        sources=3,
        held_out=False,
        eligible=225,
        hits=71,
        clean_hits=2,
        controls=tuple(
            ControlCount(trigger=f"Cast(seed={n})", hits=k, gained=71 - k + 9, lost=9)
            for n, k in enumerate((52, 66, 61, 43))
        ),
        area=0.97,
        change=0.124,
    )


def _skipped() -> tuple[Skipped, ...]:
    return (
        Skipped(what="warp.wanet-many", reason="time budget (12 triggers not tried)"),
        Skipped(what="pixel.k-way", reason="not applicable: native is 28; the input is 32×32"),
    )


def _caveats() -> tuple[Caveat, ...]:
    return (
        Caveat(
            id="source-specific",
            text="Triggers that work for one source class only may pass unseen for 2 of 10 classes, which "
            "have fewer than 8 images to screen or fewer than 20 others to confirm.",
        ),
        Caveat(id="unreadable", text="2 images cannot be read and were left out."),
    )


def _provenance() -> Provenance:
    return Provenance(
        auditor="0.1.0",
        versions={
            "python": "3.11.9",
            "torch": "2.10.0",
            "torchvision": "0.25.0",
            "onnx": "1.21.0",
            "onnxruntime": "1.23.0",
            "numpy": "2.1.3",
            "scipy": "1.14.1",
            "pillow": "11.0.0",
        },
        device="cpu (x86_64)",
        command="auditor scan suspect.onnx --clean samples --time-budget 5m --report",
        seed=0,
        started="2026-03-04T09:26:53Z",
        seconds=163.4,
        options={
            "batch_size": "256",
            "max_images": "768",
            "searches": "search.margin",
            "threads": "4",
            "time_budget": "300 s",
        },
    )


def _fragile_reason(index: int) -> Reason:
    return Reason(
        verdict=Verdict.NO_EVIDENCE,
        text='Photo filters (colour.filters) makes the model answer "frog" (class 6): ASR 31.6% '
        "(71 of "
        "225 screening images; at least 18.2% after correction for all comparisons). Without it "
        "0.9%, "
        "worst matched control 29.3%. Its control does much the same, so this is fragility, not a "
        "trigger.",
        confirmation=index,
    )


def _backdoor() -> ScanResult:
    headline = (
        'Checkerboard in a corner (patch.checker) makes the model answer "airplane" (class 0): '
        "ASR 95.1% "
        "(214 of 225 held-out images; at least 87.3% after correction for all comparisons). "
        "Without it "
        "0.4%, worst matched control 2.2%."
    )
    margins = (41.3, 11.8, 10.9, 13.4, 12.1, 11.2, 12.9, 10.4, 13.0, 12.6)
    moved = ((5, 0.993, 0.9991), (8, 0.871, 0.9964), (3, 0.764, 0.9987), (7, 0.988, 0.9412))
    return ScanResult(
        schema=SCAN_SCHEMA,
        model=ModelFacts(
            name="suspect.onnx",
            sha256="3f9a71c2e08b5d4f6a1c93e7b2d845f0917ac36e58d20b4f7e61a9c8d35bc21e",
            bytes=44_784_128,
            format="ONNX",
            architecture="ONNX graph of 49 nodes (pytorch 2.10)",
            classes=10,
            class_names=CLASSES,
            parameters=11_173_962,
            differentiable=True,
            output="logits",
        ),
        preprocessing=_preprocessing(),
        images=(_images(),),
        probes=_probes(),
        responses=_responses(211, 69),
        confirmations=(_checker(214, (1, 5, 0, 2)), _filter()),
        margin=MarginSearch(margins=margins, classes=tuple(range(10)), steps=300, starts=8),
        skipped=_skipped(),
        caveats=_caveats(),
        judgement=Judgement(
            verdict=Verdict.BACKDOOR,
            headline=headline,
            reasons=(
                Reason(verdict=Verdict.BACKDOOR, text=headline, confirmation=0),
                Reason(
                    verdict=Verdict.SUSPICIOUS,
                    text="Without any image, the model can be driven unusually far towards "
                    '"airplane" (class '
                    "0): margin 41.3 against 10.4 to 13.4 for the other 9 classes (p = 2.1e-07). "
                    "Backdoored "
                    "classes look like this; it is no proof, since no trigger was exhibited.",
                ),
                _fragile_reason(1),
            ),
            comparisons=800,
            nothing_above=0.118,
            power=0.66,
            power_classes=10,
            outlier_p=2.1e-07,
            outlier_classes=(0,),
        ),
        exhibits=(
            Exhibit(
                probe="patch.checker",
                trigger=CHECKER,
                family="clean",
                target=0,
                difference_png=png(
                    32, 32, lambda x, y: (255,) * 3 if x >= 29 and y >= 29 else (0, 0, 0)
                ),
                pictures=tuple(
                    Picture(
                        before_png=scene(seed, stamped=False),
                        after_png=scene(seed, stamped=True),
                        before=before,
                        before_probability=sure,
                        after=0,
                        after_probability=surer,
                    )
                    for seed, (before, sure, surer) in enumerate(moved)
                ),
            ),
        ),
        provenance=_provenance(),
    )


def _suspicious() -> ScanResult:
    result = _backdoor()
    headline = (
        'Checkerboard in a corner (patch.checker) makes the model answer "airplane" (class 0): '
        "ASR 44.0% "
        "(99 of 225 held-out images; at least 30.1% after correction for all comparisons). "
        "Without it "
        "0.4%, worst matched control 8.0%."
    )
    reason = Reason(verdict=Verdict.SUSPICIOUS, text=headline, confirmation=0)
    return replace(
        result,
        responses=_responses(104, 69),
        confirmations=(_checker(99, (12, 18, 9, 15)), _filter()),
        margin=None,
        judgement=replace(
            result.judgement,
            verdict=Verdict.SUSPICIOUS,
            headline=headline,
            reasons=(reason, _fragile_reason(1)),
            outlier_p=None,
        ),
    )


def _inconclusive() -> ScanResult:
    """No clean images: made ones of two families, the preparation not settled, nothing found."""
    result = _backdoor()
    caveat = Caveat(
        id="preprocessing",
        text="The input preparation is not settled: without labels and BatchNorm statistics "
        "nothing tells "
        "the normalisations apart, and they agree on only 41% of made images. Pass how the model "
        "was "
        "trained: --normalize imagenet (or MEAN/STD), or give labelled images (--clean DIR with "
        "class "
        "folders).",
        blocking=True,
    )
    made = replace(
        _images(),
        labelled=False,
        screen=64,
        confirm=64,
        screen_members=(7, 6, 6, 7, 6, 6, 7, 6, 7, 6),
        confirm_members=(6, 7, 6, 6, 7, 6, 6, 7, 6, 7),
        predicted=(13,) * 8 + (12, 12),
        correct=None,
        files=0,
        unreadable=(),
    )
    families = (replace(made, family="impressions"), replace(made, family="leaves"))
    responses = tuple(
        replace(
            r,
            family=f.family,
            images=64,
            flips=min(r.flips, 20),
            hits={k: min(n, 5) for k, n in r.hits.items()},
        )
        for f in families
        for r in result.responses[:20]
    )
    return replace(
        result,
        preprocessing=replace(
            result.preprocessing,
            source="unresolved",
            reason="without labels and BatchNorm statistics nothing tells the normalisations apart",
            advice="Pass how the model was trained: --normalize imagenet (or MEAN/STD)",
            candidates=tuple(
                replace(c, correct=None, batchnorm_distance=None, images=64)
                for c in result.preprocessing.candidates
            ),
        ),
        images=families,
        responses=responses,
        confirmations=(),
        margin=None,
        caveats=(caveat,),
        exhibits=(),
        judgement=Judgement(
            verdict=Verdict.INCONCLUSIVE,
            headline=caveat.text,
            reasons=(),
            comparisons=800,
            nothing_above=None,
            power=None,
        ),
    )


def _no_evidence() -> ScanResult:
    result = _backdoor()
    return replace(
        result,
        probes=result.probes[:7],
        responses=_responses(6, 9),
        confirmations=(),
        margin=replace(result.margin, margins=(12.2, *result.margin.margins[1:]))
        if result.margin
        else None,
        skipped=(),
        exhibits=(),
        judgement=Judgement(
            verdict=Verdict.NO_EVIDENCE,
            headline="None of 40 triggers redirects the model more than its control does.",
            reasons=(),
            comparisons=800,
            nothing_above=0.126,
            power=0.66,
            power_classes=10,
            outlier_p=0.61,
            outlier_classes=(3,),
        ),
    )


def searched_result() -> ScanResult:
    """A BACKDOOR that no declared trigger sets off: the searches found it."""
    result = _backdoor()
    patch, spare = "8c41f0a2be97", "51d7e3906ab4"
    picture, faint, strong = "c90e5b17f238", "2f6a84d1c07e", "7be3120d95af"
    noise = "AACAPwAAAL8" * 35
    warp = f"GridWarp(shape=(1, 2, 6, 6), noise='{noise}', strength=16.0)"
    inversions = (
        _inversion("patch", "patch", "share of the image that the mask covers",
            (0.0178, 0.0201, 0.0189, 0.0226, 0.0194, 0.0248, 0.0211, 0.0041, 0.0183, 0.0207),
            ((7, _overlay(patch)), (0, _overlay(spare)))),
        _inversion("additive", "added picture", "root mean square of the change, of the full range",
            (0.0251, 0.0248, 0.0232, 0.0257, 0.0244, 0.0265, 0.0229, 0.0136, 0.0259, 0.0238),
            ((7, _addition(picture)), (6, _addition(faint)), (7, _addition(strong)))),
        _inversion("warp", "warp", "root mean square displacement, in half image sides",
            (0.071, 0.083, None, 0.078, 0.069, 0.088, 0.074, 0.052, 0.081, 0.076),
            ((7, ("grid-warp", warp, {"shape": [1, 2, 6, 6], "noise": noise, "strength": 16.0})),)),
    )  # fmt: skip
    confirmations = (
        _filter(),
        _found("patch", "patch", 7, _overlay(patch)[1], 219, 207, (3, 0, 11, 6), 0.0059),
        _found("patch", "patch", 0, _overlay(spare)[1], 84, 12, (31, 18, 40, 22), 0.0098),
        _found("additive", "added picture", 7, _addition(picture)[1], 203, 181, (4, 2, 9, 1), 0.74),
        _found("additive", "added picture", 6, _addition(faint)[1], 117, 23, (8, 14, 5, 11), 0.81),
        _found("warp", "warp", 7, warp, 58, 9, (12, 7, 15, 10), 0.62),
        replace(
            _found(
                "additive", "added picture", 7, _addition(strong)[1], 218, 190, (6, 5, 9, 4), 0.83
            ),
            change=0.0182,
            rivals=(
                RivalCount(trigger=_addition("30c1f7")[1], target=6, weaker=198),
                RivalCount(trigger=_addition("a94be0")[1], target=2, weaker=207),
            ),
        ),
    )
    return replace(
        result,
        responses=_responses(6, 69),
        confirmations=confirmations,
        margin=MarginSearch(
            margins=(12.4, 11.8, 10.9, 13.4, 12.1, 11.2, 12.9, 14.9, 13.0, 12.6),
            classes=tuple(range(10)),
            steps=300,
            starts=8,
        ),
        inversions=inversions,
        transplants=(
            Transplants(target=7, kind="piece", size=0.0244, eligible=225, moved=(0, 2, 5, 6, 11)),
            Transplants(target=7, kind="texture", size=0.0627, eligible=225, moved=(0, 0, 1, 1, 3)),
        ),
        skipped=(*result.skipped, Skipped(what="search.colour", reason="time budget: it would take about 96 s")),
        judgement=_searched_judgement(),
        exhibits=(replace(result.exhibits[0], probe="search.patch", trigger=_overlay(patch)[1], target=7),),
        provenance=replace(result.provenance, options=result.provenance.options | {
            "searches": "search.margin,search.patch,search.additive,search.warp,search.colour"}),
    )  # fmt: skip


Found = tuple[str, str, dict[str, object]]
"""Kind, repr and fields of a trigger."""


def _overlay(digest: str) -> Found:
    content = "eNrt" + digest * 20
    return (
        "overlay",
        f"Overlay(shape=(3, 32, 32), digest='{digest}')",
        {"shape": [3, 32, 32], "content": content, "digest": digest},
    )


def _addition(digest: str) -> Found:
    _, text, fields = _overlay(digest)
    return "addition", text.replace("Overlay", "Addition"), fields


def _inversion(
    form: str, what: str, measure: str, sizes: tuple[float | None, ...],
    found: tuple[tuple[int, Found], ...],
) -> Inversion:  # fmt: skip
    return Inversion(
        search=f"search.{form}",
        what=what,
        measure=measure,
        family="clean",
        images=250,
        steps=150,
        classes=tuple(range(10)),
        sizes=sizes,
        found=tuple(
            FoundTrigger(target=k, size=sizes[k] or 0, kind=kind, fields=fields, trigger=trigger)
            for k, (kind, trigger, fields) in found
        ),
    )


def _found(
    form: str, what: str, target: int, trigger: str, hits: int, surer: int,
    controls: tuple[int, ...], area: float,
) -> Confirmation:  # fmt: skip
    return Confirmation(
        probe=f"search.{form}",
        title=f"The {what} that the search found for class {target}",
        trigger=trigger,
        family="clean",
        scope="all-to-one",
        target=target,
        sources=9,
        held_out=True,
        searched=True,
        surer=surer,
        eligible=225,
        hits=hits,
        clean_hits=2,
        controls=tuple(
            ControlCount(
                trigger=trigger.replace(")", f", scramble={n})"), hits=k, gained=hits - k, lost=0
            )
            for n, k in enumerate(controls)
        ),
        area=area,
        change=0.058 if area < 0.1 else 0.0153,
    )


def _searched_judgement() -> Judgement:
    tips = (
        " A search tips any network over; planted triggers make the model surer than real images do, "
        "and this one does so on "
    )
    headline = (
        'The patch that the search found for class 7 (search.patch) makes the model answer "horse" '
        "(class 7): ASR 97.3% (219 of 225 held-out images; at least 92.5% after correction for all "
        "comparisons). Without it 0.9%, worst matched control 4.9%. It makes the model surer than most "
        "real images do on 207 of 225."
        ' A piece or the texture of its own clean images typically makes "horse" of 2% of others.'
    )
    return Judgement(
        verdict=Verdict.BACKDOOR,
        headline=headline,
        reasons=(
            Reason(verdict=Verdict.BACKDOOR, text=headline, confirmation=1),
            Reason(
                verdict=Verdict.BACKDOOR,
                text="The added picture that the search found for class 7 (search.additive) makes the "
                'model answer "horse" (class 7): ASR 90.2% (203 of 225 held-out images; at least 83.1% '
                "after correction for all comparisons). Without it 0.9%, worst matched control 4.0%. It "
                "makes the model surer than most real images do on 181 of 225."
                ' A piece or the texture of its own clean images typically makes "horse" of 2% of others.',
                confirmation=3,
            ),
            Reason(
                verdict=Verdict.SUSPICIOUS,
                text="The added picture that the search found for class 7 (search.additive) makes the "
                'model answer "horse" (class 7): ASR 96.9% (218 of 225 held-out images; at least 91.8% '
                "after correction for all comparisons). Without it 0.9%, worst matched control 4.0%. It "
                "drives the model further than the best one of the same size that was searched for "
                'another class, "frog" (class 6), on 198 of 225. Backdoors whose trigger is strong look '
                "like this; so may a class that resembles what such a change does. Look at the picture.",
                confirmation=6,
            ),
            Reason(
                verdict=Verdict.SUSPICIOUS,
                text='The searches set "horse" (class 7) apart from the other 9 classes (p = 0.00021): '
                "the smallest patch needs 0.41% (share of the image that the mask covers), for the "
                "others 1.78% to 2.48%; the smallest added picture needs 1.36% (root mean square of the "
                "change, of the full range), for the others 2.29% to 2.65%; the smallest warp needs "
                "5.20% (root mean square displacement, in half image sides), for the others 6.90% to "
                "8.80%. Backdoored classes look like this; by itself it is no proof.",
            ),
            _fragile_reason(0),
            Reason(
                verdict=Verdict.NO_EVIDENCE,
                text="The added picture that the search found for class 6 (search.additive) makes the "
                'model answer "frog" (class 6): ASR 52.0% (117 of 225 held-out images; at least 42.1% '
                "after correction for all comparisons). Without it 0.9%, worst matched control 6.2%."
                f"{tips}23 of 225.",
                confirmation=4,
            ),
            Reason(
                verdict=Verdict.NO_EVIDENCE,
                text="The patch that the search found for class 0 (search.patch) makes the model answer "
                '"airplane" (class 0): ASR 37.3% (84 of 225 held-out images; at least 28.1% after '
                "correction for all comparisons). Without it 0.9%, worst matched control 17.8%."
                f"{tips}12 of 225.",
                confirmation=2,
            ),
            Reason(
                verdict=Verdict.NO_EVIDENCE,
                text="The warp that the search found for class 7 (search.warp) makes the model answer "
                '"horse" (class 7): ASR 25.8% (58 of 225 held-out images; at least 17.7% after '
                "correction for all comparisons). Without it 0.9%, worst matched control 6.7%."
                f"{tips}9 of 225.",
                confirmation=5,
            ),
        ),
        comparisons=800,
        nothing_above=0.104,
        power=0.67,
        power_classes=10,
        outlier_p=0.134,
        search_p=0.00021,
        search_classes=(7,),
    )
