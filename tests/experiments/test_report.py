import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from experiments.forest import Interval, LiftRow, ab_forest
from experiments.records import read_json
from experiments.report import render_report, write_report
from experiments.report_content import (
    Notes,
    ReportContent,
    curve_of_history,
    read_report_content,
    write_figure,
)
from experiments.report_honesty import honesty


class Page(HTMLParser):
    """Collects tags, addresses and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.in_style = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.in_style = tag == "style"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.addresses += re.findall(r"url\(([^)]*)\)", " ".join(v or "" for _, v in attrs))
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += "" if self.in_style else data

    def handle_endtag(self, tag):
        self.in_style = False


def test_the_page_reaches_for_nothing_outside_itself(whole_run):
    html = (whole_run / "report.html").read_text()
    page = Page(html)
    assert page.addresses
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(\s*['\"]?http", html)
    assert "default-src 'none'" in html


def test_text_from_tables_is_escaped_wherever_it_stands(run, record):
    row = LiftRow(name=record.evil, lift=Interval(value=0.1, low=0.0, high=0.2))
    image = ab_forest([row], control="a", treatment="b")
    write_figure(run, "figure_5", image, title=record.evil, caption=f"a caption {record.evil}")
    html = write_report(run).read_text()
    page = Page(html)
    assert record.evil not in html and not page.handlers
    for words in ("a title ", "a meaning ", "a limit ", "no images ", "a caption ", "none "):
        assert words + record.evil in page.text


def test_the_page_says_what_matters(whole_run, record):
    html = (whole_run / "report.html").read_text()
    text = " ".join(Page(html).text.split())
    for words in (
        "dashclip is worth shipping",
        "Simulated clicks",
        "Simulated A/B test",
        "true +4.3%",
        "the better placebo",
        "oracle, slot unknown",
        "0.9000",
        "Sample-ratio gate: passed.",
        "adjusted by their own past (CUPED)",
        "a lift of 3.1%, in eight of ten",
        record.full_ab().registration_sha256,
        "40% of the budgets run out",
        "cold products",
        "too few users",
        "with any onevariant left out",
        "One figure lies outside the limits",
        "91.0% !",
        "shuffled minus random: not beyond chance",
        "TF-IDF",
        "0.812",
        "75.2 s",
        "1,024 MiB",
        "1.25 ms",
        "adtower run --data d --out r adtower report r",
        "ab" * 32,
        "cd" * 32,
        "41",
        "image_only was not trained",
        "mean relevance shown: nobody knows it here",
    ):
        assert words in text, words
    assert text.index("worth shipping") < text.index("Click models compared")


def test_the_verdict_has_both_intervals_in_one_sentence(record):
    comparison = record.some_comparison()
    html = render_report(ReportContent(comparison=comparison))
    verdict = re.search(r'<p class="verdict">(.*?)</p>', html)
    assert verdict is not None
    text = Page(verdict[1]).text.replace("\u2212", "-").replace("\xa0", " ")
    row = comparison["dashclip"]
    for low, high in (
        (row.delta_auc_low, row.delta_auc_high),
        (row.delta_placebo_low, row.delta_placebo_high),
    ):
        assert f"[{low:+.4f}, {high:+.4f}]" in text
    assert "against production" in text and "the better placebo" in text
    assert text.count(".") - len(re.findall(r"\d\.\d", text)) == 1


def test_a_stored_page_stays_where_the_new_one_would_be_too_large(record):
    content = ReportContent(config={"x": "y" * 5_000_000})
    with pytest.raises(ValueError, match=r"would have 5\.\d MB, more than 5"):
        render_report(content)


def test_a_self_test_of_few_experiments_has_wider_limits():
    figures = {"ctr.false_positive_rate": 0.08, "ctr.cuped.false_positive_rate": 0.05}
    many, few = (honesty({**figures, "experiments": n}) for n in (2000.0, 100.0))
    assert many is not None and few is not None
    assert (many.outside, few.outside) == (1, 0)
    # Three standard errors at 2,000 experiments are 0.015, at 100 they are 0.067.
    assert few.limits[0] == "0.0% to 11.7%" or few.limits[0].endswith("to 11.7%")
    assert honesty({"experiments": 5.0}) is None


def test_without_a_self_test_the_page_says_how_to_get_one():
    html = render_report(ReportContent(config={"out": "runs/x"}))
    text = " ".join(Page(html).text.split())
    assert "adtower simulate --selftest --json runs/x/selftest.json" in text


def test_a_leak_is_shouted_at_the_top(run, record):
    found = '[{"looked_for": "A request in two parts", "found": "3 requests", "clean": false}]'
    (run / "leak_checks.json").write_text(found)
    text = " ".join(Page(write_report(run).read_text()).text.split())
    assert text.index("Possible leak. A request in two parts: 3 requests.") < text.index("Variants")
    assert "look here" in text


def test_an_experiment_run_afterwards_is_listed(run, record):
    folder = run / "ab" / "dashclip-vs-stage1-again"
    folder.mkdir(parents=True)
    (folder / "ab.json").write_text(record.full_ab().to_json())
    text = Page(write_report(run).read_text()).text
    assert "Experiments run afterwards" in text
    assert record.full_ab().registration_sha256[:16] in text


def test_placebos_are_marked_and_the_gain_is_green(whole_run):
    html = (whole_run / "report.html").read_text()
    assert len(re.findall(r'<tr class="placebo', html)) >= 2
    assert "random_vectors (placebo)" in html
    assert 'class="tile clear"' in html


def test_a_gain_that_may_be_chance_is_not_green(record):
    html = render_report(ReportContent(comparison=record.some_comparison(gain=0.0)))
    assert "Nothing is worth shipping" in html and 'class="tile clear"' not in html


def test_an_unequal_split_is_shouted(record):
    html = render_report(ReportContent(ab=record.some_ab(srm_p_value=1e-9)))
    assert "No lift of this test should be believed" in html and "believe no lift" in html


def test_real_clicks_are_not_called_simulated(record):
    html = render_report(ReportContent(data=record.some_data(simulated=False), ab=record.some_ab()))
    assert "imulated" not in Page(html).text


def test_an_empty_run_says_for_each_part_why_it_is_missing():
    html = render_report(ReportContent(notes=Notes(left_out={"ab": "the truth is not known"})))
    text = Page(html).text
    assert "No verdict" in text and "Left out: the truth is not known." in text
    assert text.count("Left out") == 15
    assert "<svg" not in html


def test_the_page_is_the_same_bytes_each_time(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_reading_gives_back_what_was_written(run, record):
    content = read_report_content(run)
    assert content.comparison == record.some_comparison() and content.ab == record.full_ab()
    assert content.data == record.some_data() and content.simulated
    assert content.training.curves[0].y[0] == 4.0
    assert content.figure("figure_6") is None


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
    for title in ("the old one", "the new one"):
        write_figure(run, "extra", file.getvalue(), title=title, caption="")
    page = Page(write_report(run).read_text())
    assert "img" in page.tags and "the new one" in page.text and "the old one" not in page.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("comparison.json", "{}", "not a comparison of this version"),
        ("ab.json", '{"lifts": {}}', "not an A/B result"),
        ("data.json", '{"name": "x"}', r"data\.json: simulated"),
        ("metrics.json", '{"auc": NaN}', "auc = nan"),
        ("training.json", "{", r"training\.json is not JSON"),
        ("notes.json", '{"titel": "x"}', r"notes\.json: titel"),
        ("leak_checks.json", '[{"found": "x"}]', r"leak_checks\.json: 0\.looked_for"),
        ("selftest.json", '{"ctr.coverage": "x"}', r"selftest\.json"),
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
    before = [one["name"] for one in read_json(run / "figures" / "figures.json")]
    assert len(set(before)) == len(before)
    write_figure(run, before[0], b"<svg/>", title="", caption="")
    after = [one["name"] for one in read_json(run / "figures" / "figures.json")]
    assert sorted(after) == sorted(before)


def test_what_the_records_suffice_for_is_drawn_and_a_stored_figure_takes_its_place(whole_run, run):
    page = (whole_run / "report.html").read_text()
    drawn = ("variants", "slices", "exchange", "ab", "ab_looks", "ab_distortions", "training")
    for name in drawn:
        assert f'id="{name}-' in page, name
    row = LiftRow(name="a stored row", lift=Interval(value=0.1, low=0.0, high=0.2))
    image = ab_forest([row], control="a", treatment="b")
    for name in drawn:
        write_figure(run, name, image, title=f"stored {name}", caption=f"caption of {name}")
    html = write_report(run).read_text()
    assert html.count(">a stored row<") == len(drawn) and html.count("caption of variants") == 1
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
