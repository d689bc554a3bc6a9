import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from experiments.ab_result import AbResult
from experiments.compare import compare_variants
from experiments.figures import Curve
from experiments.forest import Interval, LiftRow, ab_forest
from experiments.lift import Lift
from experiments.records import (
    collect_environment,
    read_json,
    write_bytes,
    write_json,
    write_metrics,
)
from experiments.report import render_report, write_report
from experiments.report_content import (
    Cost,
    DataPart,
    DataSummary,
    Notes,
    ReportContent,
    TrainingRecord,
    curve_of_history,
    read_report_content,
    write_figure,
)

EVIL = "<script>alert('x')</script>"


def some_comparison(gain: float = 1.0):
    """Five variants on 3,000 impressions; dashclip sees ``gain`` times what the others do not."""
    rng = np.random.default_rng(0)
    hidden_N, shown_N = rng.normal(size=(2, 3000))
    label_N = (rng.random(3000) < 1 / (1 + np.exp(2 - shown_N - hidden_N))).astype(float)

    def model(weight):
        noise_N = 0.02 * rng.normal(size=3000)
        return [1 / (1 + np.exp(2 - shown_N - weight * hidden_N - noise_N))]

    p_click = {
        "production": model(0),
        "random_vectors": model(0),
        "shuffled_vectors": model(0),
        "dashclip": model(gain),
        "lightgbm": model(-0.3),
    }
    return compare_variants(label_N, rng.integers(0, 300, 3000), p_click)


def some_ab(srm_p_value: float = 0.7) -> AbResult:
    ctr = Lift(
        name="ctr", control=0.04, treatment=0.044, lift=0.1, low=0.02, high=0.18, p_value=0.01,
        true=0.0912,
    )  # fmt: skip
    return AbResult(
        lifts={"ctr": ctr},
        undefined={"cvr": "no purchase in the control arm"},
        n_requests=1000,
        n_users=200,
        users_control=101,
        users_treatment=99,
        srm_p_value=srm_p_value,
        confidence=0.95,
        salt="s",
    )


def some_data(simulated: bool = True) -> DataSummary:
    part = DataPart(impressions=3000, clicks=300, first="2026-01-01 00:00", last="2026-02-01 00:00")
    return DataSummary(
        name="grocery",
        simulated=simulated,
        fingerprint="ab" * 32,
        tables={"impressions": 3000},
        parts={"test": part},
    )


@pytest.fixture
def run(tmp_path):
    """A whole run folder, as the pipeline writes it."""
    comparison, ab = some_comparison(), some_ab()
    write_bytes(tmp_path / "comparison.json", comparison.to_json().encode())
    write_bytes(tmp_path / "ab.json", ab.to_json().encode())
    slices = {f"{row.name}.slice.cold_products.auc": 0.61 for row in comparison.rows}
    oracle = {"oracle.auc": 0.95, "oracle_without_position.auc": 0.9, "dashclip.fit_seconds": 12.0}
    write_metrics(tmp_path / "metrics.json", comparison.to_metrics() | oracle | slices)
    evaluation = {"tfidf": {"auc_2v1": 0.593}, "dashclip": {"auc_2v1": 0.8121, "pairs": 77.0}}
    write_json(tmp_path / "embedding_evaluation.json", evaluation | {"random": {"auc_2v1": None}})
    write_json(tmp_path / "data.json", some_data())
    write_json(tmp_path / "environment.json", collect_environment())
    settings = {"seed": 41, "ab": {"control": "production", "treatment": "dashclip"}, "x": EVIL}
    write_json(tmp_path / "config.json", settings)
    curve = Curve(
        panel="stage 1", name="ITC", x=(1, 2), y=(4.0, 3.0), x_label="step", y_label="nats"
    )
    training = TrainingRecord(curves=(curve,), costs=(Cost(what="stage 1", seconds=75.2),))
    write_json(tmp_path / "training.json", training)
    notes = Notes(
        title=f"a title {EVIL}",
        command="adtower run --data d --out r",
        meanings={"dashclip": f"a meaning {EVIL}"},
        limits=(f"a limit {EVIL}",),
        left_out={"image_only": f"no images {EVIL}", "figure_4": "the products have no category"},
    )
    write_json(tmp_path / "notes.json", notes)
    row = LiftRow(name=EVIL, lift=Interval(value=0.1, low=0.0, high=0.2))
    image = ab_forest([row], control="a", treatment="b")
    write_figure(tmp_path, "figure_5", image, title=EVIL, caption=f"a caption {EVIL}")
    return tmp_path


class Page(HTMLParser):
    """Collects tags, addresses and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.addresses += re.findall(r"url\(([^)]*)\)", " ".join(v or "" for _, v in attrs))
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_the_page_reaches_for_nothing_outside_itself(run):
    html = write_report(run).read_text()
    page = Page(html)
    assert page.addresses
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(\s*['\"]?http", html)
    assert "default-src 'none'" in html


def test_text_from_tables_is_escaped_wherever_it_stands(run):
    html = write_report(run).read_text()
    page = Page(html)
    assert EVIL not in html and not page.handlers
    for words in ("a title ", "a meaning ", "a limit ", "no images ", "a caption "):
        assert words + EVIL in page.text


def test_the_page_says_what_matters(run):
    html = write_report(run).read_text()
    text = " ".join(Page(html).text.split())
    for words in (
        "dashclip is worth shipping",
        "Simulated clicks",
        "Simulated A/B test",
        "true +9.1%",
        "the better placebo",
        "oracle, slot unknown",
        "0.9000",
        "cold products",
        "TF-IDF",
        "0.812",
        "75.2 s",
        "adtower run --data d --out r",
        "ab" * 32,
        "41",
        "Left out: the products have no category.",
        "image_only was not trained",
        "conversion rate (purchases per click): no purchase in the control arm",
    ):
        assert words in text, words
    assert text.index("worth shipping") < text.index("Click models compared")


def test_placebos_are_marked_and_the_gain_is_green(run):
    html = write_report(run).read_text()
    assert len(re.findall(r'<tr class="placebo', html)) >= 2
    assert "random_vectors (placebo)" in html
    assert 'class="tile clear"' in html


def test_a_gain_that_may_be_chance_is_not_green():
    html = render_report(ReportContent(comparison=some_comparison(gain=0.0)))
    assert "Nothing is worth shipping" in html and 'class="tile clear"' not in html


def test_an_unequal_split_is_shouted():
    html = render_report(ReportContent(ab=some_ab(srm_p_value=1e-9)))
    assert "No lift of this test should be believed" in html and "believe no lift" in html


def test_real_clicks_are_not_called_simulated():
    html = render_report(ReportContent(data=some_data(simulated=False), ab=some_ab()))
    assert "imulated" not in Page(html).text.replace("--", "")


def test_an_empty_run_says_for_each_part_why_it_is_missing():
    html = render_report(ReportContent(notes=Notes(left_out={"ab": "the truth is not known"})))
    text = Page(html).text
    assert "No verdict" in text and "Left out: the truth is not known." in text
    assert text.count("Left out") == 8
    assert "<svg" not in html


def test_the_page_is_the_same_bytes_each_time(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_reading_gives_back_what_was_written(run):
    content = read_report_content(run)
    assert content.comparison == some_comparison() and content.ab == some_ab()
    assert content.data == some_data() and content.simulated
    assert content.training.curves[0].y == [4.0, 3.0]
    assert content.figure("figure_4") is None


def test_figures_too_large_for_the_page_give_way_to_a_sentence(run):
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    for i in range(3):
        write_figure(run, f"large{i}", file.getvalue(), title="large", caption="")
    html = write_report(run).read_bytes()
    assert len(html) < 5_000_000 and html.count(b"too many for this page") == 3


def test_a_png_is_shown_and_a_figure_is_replaced(run):
    file = BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    for title in ("first", "second"):
        write_figure(run, "extra", file.getvalue(), title=title, caption="")
    page = Page(write_report(run).read_text())
    assert "img" in page.tags and "second" in page.text and "first" not in page.text.split()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("comparison.json", "{}", "not a comparison of this version"),
        ("ab.json", '{"lifts": {}}', "not an A/B result"),
        ("data.json", '{"name": "x"}', r"data\.json: simulated"),
        ("metrics.json", '{"auc": NaN}', "auc = nan"),
        ("training.json", "{", r"training\.json is not JSON"),
        ("notes.json", '{"titel": "x"}', r"notes\.json: titel"),
        ("figures/figures.json", '[{"name": "a", "file": "../x", "title": "", "caption": ""}]',
         "points outside"),
        ("figures/figure_5.svg", "<svg><script/></svg>", "Was the file changed"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_the_old_report_stays(run, name, content, message):
    before = write_report(run).read_bytes()
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "none")
    with pytest.raises(ValueError, match="is it a run folder"):
        write_report(tmp_path)


def test_a_figure_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither an SVG nor a PNG"):
        write_figure(tmp_path, "x", b"GIF89a", title="", caption="")
    with pytest.raises(ValueError, match="names a file"):
        write_figure(tmp_path, "../x", b"<svg", title="", caption="")
    assert not list(tmp_path.iterdir())


def test_a_history_becomes_a_curve():
    history = [{"step": 10, "loss": 3.0}, {"step": 20}, {"step": 30, "loss": 2.0}]
    curve = curve_of_history("stage 1", "ITC", history)
    assert curve is not None and (curve.x, curve.y) == ((10.0, 30.0), (3.0, 2.0))
    assert curve_of_history("stage 1", "ITC", history, y="accuracy") is None


def test_the_index_of_figures_lists_each_once(run):
    assert [one["name"] for one in read_json(run / "figures" / "figures.json")] == ["figure_5"]


def test_a_stored_forest_takes_the_place_of_the_drawn_one(run):
    row = LiftRow(name="a stored row", lift=Interval(value=0.1, low=0.0, high=0.2))
    for name in ("variants", "ab", "training"):
        image = ab_forest([row], control="a", treatment="b")
        write_figure(run, name, image, title=f"stored {name}", caption=f"caption of {name}")
    html = write_report(run).read_text()
    assert html.count("a stored row") == 3 and html.count("caption of variants") == 1
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
