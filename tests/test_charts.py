"""The figures: the same bytes for the same numbers, inert, told in words, and right."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from auditor.report import charts
from auditor.report.charts import (
    MATRIX_CLASSES,
    RateBar,
    coloured_classes,
    confusion_matrix,
    feature_map,
    mask_histogram,
    rate_bars,
    training_curve,
)
from auditor.report.drawing import CATEGORIES, ROLES
from auditor.results.purify import Check, MaskLayer, Point
from tests.sample_purify import RIGHT, mask_layers, masks_stage, matrix, sample_embedding
from tests.sample_result import CLASSES

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "]]></title><svg onload=alert(1)>",
    "datum.y + 1", "{\"expr\": \"alert(1)\"}", "%d {{ 7 * 7 }} &amp; ' \"", "\x00\x1b[31m\u202e\ud800",
    "horse", "ship", "truck",
)  # fmt: skip
NAMES = CLASSES


def bars(name: str = "before") -> str:
    rows = [
        RateBar(series="attack", name=name, share=0.95, low=0.91, high=0.97, text="95.0%  171/180"),
        RateBar(series="after", name="purified", share=0.0, low=0.0, high=0.02, text="0.0%  0/180"),
    ]
    return rate_bars(rows, title="ASR", prefix="rate")


def feature(points: Sequence[Point], which: str = "before", names: Sequence[str] = NAMES) -> str:
    coloured = coloured_classes(points)
    return feature_map(points, names, coloured, which=which, title="Features", prefix="map")  # type: ignore[arg-type]


def figures(names: Sequence[str] = NAMES) -> dict[str, str]:
    layer = replace(mask_layers(3)[2], layer=names[0])
    return {
        "bars": bars(names[1]),
        "masks": mask_histogram(layer, prefix="mask"),
        "curve": training_curve(masks_stage().checks, title=names[0], prefix="curve"),
        "map": feature(sample_embedding(60).points, names=names),
        "matrix": confusion_matrix(matrix(RIGHT, 1), names, title=names[2], prefix="matrix"),
    }


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - we drew it


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in parse(svg).iter() if e.tag.endswith("text")]  # fmt: skip


def titles(svg: str) -> list[str]:
    """The title of each mark that has one."""
    found = [e.text or "" for e in parse(svg).iter() if e.tag.endswith("}title")]
    return found[1:]


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    """Every figure, held against Altair's schema while it was made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "VALIDATE", True)
        return [*figures().values(), *figures(HOSTILE).values()]


def test_figures_are_inert(drawn: list[str]) -> None:
    for svg in drawn:
        for element in parse(svg).iter():
            tag = element.tag.split("}")[1]
            assert tag in {"svg", "g", "path", "line", "rect", "text", "title", "desc"}
            for name, value in element.attrib.items():
                assert name not in {"style", "href", "src"}
                assert not name.startswith("on")
                assert "url(" not in value
                assert "http" not in value
        assert "xlink" not in svg
        assert svg.count("http") == 1, "only the namespace"


def test_figures_are_told_in_words(drawn: list[str]) -> None:
    for svg in drawn:
        assert re.match(
            r'<svg xmlns="http://www.w3.org/2000/svg" class="vega" role="img" width="\d+" height="\d+" '
            r'viewBox="0 0 \d+ \d+"><title>[^<]+</title><desc>[^<]+</desc>', svg
        )  # fmt: skip
        assert len(parse(svg)) > 2


def test_every_colour_can_be_turned_for_dark_screens(drawn: list[str]) -> None:
    for svg in drawn:
        for kind, colour in re.findall(r'\b(fill|stroke)="([^"]+)"', svg):
            assert colour == "none" or colour in ROLES, colour
            if colour != "none":
                assert f"{kind[0]}-{ROLES[colour]}" in svg
        assert set(re.findall(r'font-family="([^"]+)"', svg)) <= {"sans-serif"}


def test_hostile_names_stay_text() -> None:
    for svg in figures(HOSTILE).values():
        assert "<script" not in svg
        assert "<img" not in svg
        assert not re.search(r"[\x00-\x08\x1b\u202e]", svg)
    said = titles(figures(HOSTILE)["map"])
    assert any(text.startswith("<script>alert(1)</script>") for text in said)
    assert any(text.startswith("datum.y + 1") for text in said)
    assert any('{"expr": "alert(1)"}' in text for text in said)
    assert "␀␛[31m⟨U+202E⟩⟨U+D800⟩" in " ".join(said)


def test_a_figure_is_a_function_of_its_numbers(drawn: list[str]) -> None:
    """Also in a process that draws nothing else."""
    code = (
        "import sys; from tests.test_charts import figures\n"
        "sys.stdout.buffer.write('\\n'.join(figures().values()).encode())"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert other.stdout.decode() == "\n".join(drawn[:5])


def test_identifiers_carry_the_figure_s_name() -> None:
    from auditor.report.drawing import _tidy

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg"><clipPath id="clip0"><path d="M0,0h9"/></clipPath>'
        '<g clip-path="url(#clip0)"><path d="M1,1h9" fill="#1c2127"/></g></svg>'
    )
    tidy = _tidy(svg, (9, 9), "t", "d", "mask-3")
    assert 'id="mask-3-clip0"' in tidy
    assert 'clip-path="url(#mask-3-clip0)"' in tidy


def test_bars_are_as_long_as_their_shares() -> None:
    svg = bars()
    lengths = [float(w) for w in re.findall(r'd="M0,[\d.]+h([\d.]+)v9', svg)]
    assert lengths[:3] == [120, 120, 114], "two tracks, then 95% of 120"
    assert {"before", "purified", "95.0%  171/180", "0.0%  0/180"} <= set(texts(svg))


@pytest.mark.parametrize("bins", [1, 10, 50])
def test_a_histogram_has_a_bar_a_filled_bin(bins: int) -> None:
    histogram = tuple(4 if n % 2 == 0 else 0 for n in range(bins))
    layer = MaskLayer(
        layer="bn", kind="BatchNorm", channels=sum(histogram), lower_bound=0.0, histogram=histogram,
        near_zero=0, near_one=0, smallest=0.1, mean=0.5,
    )  # fmt: skip
    svg = mask_histogram(layer, prefix="m")
    filled = re.findall(r'<path [^>]*class="f-(?:tuned|low)"', svg)
    assert len(filled) == sum(count > 0 for count in histogram)
    assert str(max(histogram)) in texts(svg)
    assert svg.count("stroke-dasharray") == 0, "no lower bound"
    assert mask_histogram(replace(layer, lower_bound=0.3), prefix="m").count("dasharray") == 1


def test_an_empty_layer_is_drawn() -> None:
    layer = MaskLayer(
        layer="bn", kind="BatchNorm", channels=0, lower_bound=0.0, histogram=(0,) * 10,
        near_zero=0, near_one=0, smallest=0.0, mean=0.0,
    )  # fmt: skip
    assert "Histogram of 0 masks" in mask_histogram(layer, prefix="m")


def test_masks_near_zero_stand_out() -> None:
    layer = replace(mask_layers(1)[0], histogram=(5, 5, 5, *(0,) * 16, 49))
    svg = mask_histogram(layer, prefix="m")
    assert svg.count('class="f-low"') == 2, "bins up to 0.1"


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_curve_of_any_length(count: int) -> None:
    checks = [Check(step=10 * n, asr=1 / (n + 1), acc=0.9, loss=1.0) for n in range(count)]
    svg = training_curve(checks, title="t", prefix="c")
    assert {"ASR", "ACC"} <= set(texts(svg))
    assert f"{count} checks from step 0 to {10 * (count - 1)}" in svg


def test_both_maps_have_the_same_frame() -> None:
    points = [
        replace(point, after=point.before, predicted_after=point.predicted_before)
        for point in sample_embedding(40).points
    ]
    assert feature(points, "before") == feature(points, "after")
    wide = [replace(points[0], after=(400.0, 400.0)), *points[1:]]
    assert feature(wide, "before") != feature(points, "before"), "the frame holds both maps"


def test_points_tell_what_they_are() -> None:
    embedding = sample_embedding(60)
    svg = feature(embedding.points)
    said = titles(svg)
    assert len(said) == 60
    assert sum("stamped" in text for text in said) == sum(p.stamped for p in embedding.points)
    assert "airplane, stamped: predicted airplane before, airplane after" in said
    triangles = re.findall(r'd="M0,-[\d.]+L-[\d.]+,[\d.]+L', svg)
    assert len(triangles) == sum(p.stamped for p in embedding.points)


def test_names_stand_beside_their_images_and_in_the_frame() -> None:
    corners = [(0.0, 0.0), (0.0, 100.0), (100.0, 100.0), (100.0, 0.0), (50.0, 50.0)]
    points = [
        Point(label=label, stamped=False, before=place, after=place, predicted_before=label, predicted_after=label)
        for label, place in enumerate(corners) for _ in range(4)
    ]  # fmt: skip
    svg = feature(points, names=[f"long name {k}" for k in range(5)])
    written = re.findall(r'translate\(([\d.-]+),([\d.-]+)\)"[^>]*>(long name \d)<', svg)
    dots = re.findall(r'translate\(([\d.-]+),([\d.-]+)\)"[^>]*>\s*<title>(long name \d):', svg)
    assert len(set(dots)) == len({name for *_, name in written}) == 5
    where = {name: (float(x), float(y)) for x, y, name in dots}
    for x, y, name in written:
        assert 36 <= float(x) <= 448 - 36
        assert 8 <= float(y) <= 360
        below = where[name][1] - float(y)
        assert not -9 - 4.2 < below < 4.2, "the name and its border would cover its images"


def test_more_classes_than_colours() -> None:
    points = [
        Point(label=k % 43, stamped=k % 2 == 0, before=(k, k), after=(k, -k), predicted_before=7, predicted_after=k % 43)
        for k in range(200)
    ]  # fmt: skip
    coloured = coloured_classes(points, [42])
    assert len(coloured) == len(CATEGORIES)
    assert 42 in coloured
    names = [str(k) for k in range(43)]
    svg = feature_map(points, names, coloured, which="after", title="t", prefix="m")
    assert "f-other" in svg
    assert "class 42" in texts(svg)
    assert len({f"f-c{k}" for k in range(10) if f"f-c{k}" in svg}) == 10


@pytest.mark.parametrize("classes", [1, 2, 10, MATRIX_CLASSES])
def test_a_matrix_draws_the_cells_that_count(classes: int) -> None:
    rows = [[9 if row == column else (row + column) % 3 for column in range(classes)] for row in range(classes)]  # fmt: skip
    names = [f"class name {k}" for k in range(classes)]
    svg = confusion_matrix(rows, names, title="t", prefix="q")
    said = titles(svg)
    assert len(said) == sum(count > 0 for row in rows for count in row)
    assert "class name 0 predicted as class name 0: 9" in said


def test_no_figure_without_a_wish() -> None:
    """Altair takes half a second to import."""
    code = (
        "import sys, auditor.report.charts, auditor.report, auditor.terminal.purify\n"
        "sys.exit({'altair', 'vl_convert', 'sklearn', 'numpy', 'torch'} & set(sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr == ""
