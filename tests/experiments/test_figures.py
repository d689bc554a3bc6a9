import re
import xml.etree.ElementTree as ElementTree
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from experiments.category_map import CategoryMap
from experiments.figure_style import THEME
from experiments.figures import Curve, calibration_figure, figure_4, figure_5, training_curves
from experiments.forest import ForestRow, Interval, LiftRow, ab_forest, variant_forest
from ranking.calibration import reliability_curve


def small_map(name="off the shelf"):
    rng = np.random.default_rng(0)
    return CategoryMap(
        name=name,
        point_N2=rng.normal(size=(40, 2)).astype(np.float32),
        category_N=np.repeat(["$tea$ & <script>", "bread"], 20),
        silhouette=0.25,
    )


def draw_figure_4(**kw):
    return figure_4([small_map(), small_map("dashclip")], **kw)


def draw_figure_5(**kw):
    rng = np.random.default_rng(0)
    by_label = {label: rng.normal(0.3 * label, 0.1, 200).clip(-1, 1) for label in range(3)}
    return figure_5({"off the shelf": by_label, "dashclip": by_label}, **kw)


def draw_calibration(**kw):
    rng = np.random.default_rng(0)
    p = rng.beta(1, 20, 2000)
    label = (rng.random(2000) < p).astype(float)
    return calibration_figure({n: reliability_curve(label, p, bins=5) for n in "abcd"}, **kw)


def draw_training(**kw):
    long = tuple(float(i) for i in range(100))
    curves = [
        Curve(panel="stage 1", name="ITC", x=long, y=long, x_label="step", y_label="loss (nats)"),
        Curve(panel="rankers", name="a", x=(1, 2), y=(3, 2), x_label="epoch", y_label="nats"),
        Curve(panel="rankers", name="b", x=(1,), y=(3,), x_label="epoch", y_label="nats"),
    ]
    return training_curves(curves, **kw)


def draw_forest(**kw):
    some = Interval(value=0.01, low=0.005, high=0.02)
    rows = [
        ForestRow(name="random_vectors", against_baseline=some, is_placebo=True),
        ForestRow(name="dashclip", against_baseline=some, against_placebo=some),
    ]
    return variant_forest(rows, baseline="production", placebo="random_vectors", **kw)


def draw_ab(**kw):
    lift = Interval(value=0.05, low=-0.01, high=0.11)
    rows = [LiftRow(name="CTR", lift=lift, true=0.04), LiftRow(name="CVR", lift=lift)]
    return ab_forest(rows, control="production", treatment="dashclip", **kw)


ALL = (draw_figure_4, draw_figure_5, draw_calibration, draw_training, draw_forest, draw_ab)


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("}text")]


@pytest.mark.parametrize("draw", ALL)
def test_a_figure_is_a_drawing_with_text_and_shapes(draw):
    svg = draw()
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("}svg")
    assert sum(element.tag.endswith("}path") for element in root.iter()) > 5
    assert len(texts(svg)) > 2


@pytest.mark.parametrize("draw", ALL)
def test_the_same_figure_is_the_same_bytes(draw):
    assert draw() == draw()


@pytest.mark.parametrize("draw", ALL)
def test_a_png_is_a_picture(draw):
    picture = Image.open(BytesIO(draw(image_format="png")))
    assert picture.format == "PNG" and min(picture.size) > 100
    assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


@pytest.mark.parametrize("draw", ALL)
def test_every_colour_has_a_counterpart_in_the_dark(draw):
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", draw().decode()))
    assert used and used <= set(THEME)


@pytest.mark.parametrize("draw", ALL)
def test_a_figure_carries_no_date_and_no_address(draw):
    addresses = set(re.findall(rb'"(https?://[^"]*)"', draw()))
    assert all(b"w3.org" in address for address in addresses)
    assert b"matplotlib.org" not in draw()


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="image_format is 'jpg'"):
        draw_ab(image_format="jpg")


def test_category_names_are_text_and_no_formula():
    assert "$tea$ & <script>" in texts(draw_figure_4())


def test_figure_4_states_the_silhouette():
    assert any("silhouette 0.250" in text for text in texts(draw_figure_4()))


def test_figure_5_computes_the_auc_by_hand():
    # Of the four pairs (1 against 2), three are in order: 0.2 < 0.3, 0.2 < 0.5, 0.4 < 0.5.
    cosine = {1: np.array([0.2, 0.4]), 2: np.array([0.3, 0.5])}
    svg = figure_5({"dashclip": cosine})
    assert any(text.endswith("0.750") and "dashclip" in text for text in texts(svg))


def test_figure_5_does_without_a_class_and_with_one_value():
    svg = figure_5({"dashclip": {2: np.array([0.5]), 0: np.array([])}})
    assert any("needs pairs of both classes" in text for text in texts(svg))


def test_densities_integrate_to_one():
    from experiments.figures import _density

    rng = np.random.default_rng(0)
    grid = np.linspace(-2, 2, 400)
    for values in (rng.normal(0, 0.3, 500), np.full(10, 0.1)):
        assert np.trapezoid(_density(values, grid), grid) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("cosine", "message"),
    [
        ({}, "no cosines to draw"),
        ({"x": {3: np.array([0.1])}}, r"labels \[3\]"),
        ({"x": {1: np.array([1.5])}}, "within"),
        ({"x": {1: np.array([np.nan])}}, "within"),
        ({"x": {1: np.array([])}}, "no pair"),
    ],
)
def test_figure_5_refuses(cosine, message):
    with pytest.raises(ValueError, match=message):
        figure_5(cosine)


def test_empty_figures_are_refused():
    for draw in (figure_4, training_curves):
        with pytest.raises(ValueError, match=r"at least one|make one"):
            draw([])
    with pytest.raises(ValueError, match="at least one"):
        calibration_figure({})
    with pytest.raises(ValueError, match="at least two"):
        variant_forest([], baseline="production", placebo=None)


def test_a_curve_of_unequal_length_is_named():
    bad = Curve(panel="p", name="dashclip", x=(1, 2), y=(1,), x_label="step", y_label="nats")
    with pytest.raises(ValueError, match="'dashclip' has 2 x and 1 y"):
        training_curves([bad])


def test_an_interval_without_its_estimate_is_refused():
    with pytest.raises(ValueError, match="does not hold its estimate"):
        Interval(value=0.1, low=0.2, high=0.3)
    with pytest.raises(ValueError, match="NaN"):
        Interval(value=0.1, low=float("nan"), high=0.3)


def test_the_forest_marks_placebos_and_states_figures():
    words = texts(draw_forest())
    assert "random_vectors (placebo)" in words
    assert any(text.startswith("+0.0100") for text in words)


def test_the_ab_forest_states_the_true_lift_only_where_it_is_known():
    words = [text for text in texts(draw_ab()) if "+5.0%" in text and "[" in text]
    assert ["true" in text for text in words] == [True, False]


def test_the_better_placebo_is_named_instead_of_compared_with_itself():
    zero = Interval(value=0.0, low=0.0, high=0.0)
    row = ForestRow(name="shuffled", against_baseline=zero, against_placebo=zero, is_placebo=True)
    words = texts(variant_forest([row], baseline="production", placebo="shuffled"))
    assert "is the better placebo" in words
    assert sum(text.startswith("+0.0000") for text in words) == 1
