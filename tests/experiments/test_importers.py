import csv
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from experiments.importers import import_clicks, import_fashion, import_homedepot
from features.check import check_dataset
from features.dataset import Dataset
from features.pipeline import FeaturePipeline

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def shared(path: str) -> Path:
    if not (SHARED / path).exists():
        pytest.skip(f"no {path} in a folder shared/data beside the repository")
    return SHARED / path


def jpeg(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 8), (colour, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_latin1(path: Path, header: list[str], rows: list[tuple]) -> None:
    with path.open("w", encoding="iso-8859-1", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows([header, *rows])


TRAIN = ["id", "product_uid", "product_title", "search_term", "relevance"]


@pytest.fixture
def homedepot(tmp_path):
    folder = tmp_path / "homedepot"
    folder.mkdir()
    write_latin1(
        folder / "train.csv",
        TRAIN,
        [
            (2, 100001, 'Angle "L", 12-Gauge', "angle bracket", 3.0),
            (3, 100001, 'Angle "L", 12-Gauge', "l bracket", 2.5),
            (9, 100002, "Décor, 1/2 in.", "deck over", 2.67),
            (16, 100005, "Shower ° faucet", "deck over", 1.67),
            (17, 100006, "Shower ° faucet", "deck over", 1.0),
            (18, 100006, "Shower ° faucet", "deck over", 3.0),
        ],
    )
    return folder


def test_homedepot_by_hand(tmp_path, homedepot):
    dataset = Dataset.open(import_homedepot(homedepot, tmp_path / "out"))
    assert check_dataset(dataset) == []
    products, queries = dataset.table("products"), dataset.table("queries")
    assert products["title"].to_list()[:2] == ['Angle "L", 12-Gauge', "Décor, 1/2 in."]
    assert products["group_id"].to_list() == ["100001", "100002", "100005", "100005"]
    assert queries["query"].to_list() == ["angle bracket", "l bracket", "deck over"]
    judged = dataset.table("relevance").join(queries, on="query_id", maintain_order="left")
    rows = judged.select("query", "product_id", "label", "rating", "source").rows()
    assert rows == [
        ("angle bracket", "100001", 2, 3.0, "human"),
        ("l bracket", "100001", 1, 2.5, "human"),
        ("deck over", "100002", 2, 2.67, "human"),
        ("deck over", "100005", 0, 1.67, "human"),
        ("deck over", "100006", 1, 2.0, "human"),
    ]
    assert "products.brand" not in dataset.spec.features.sparse


def test_homedepot_descriptions_and_brands(tmp_path, homedepot):
    write_latin1(
        homedepot / "product_descriptions.csv",
        ["product_uid", "product_description"],
        [(100002, "Not only, but\nalso ½ done"), (999999, "unused")],
    )
    write_latin1(
        homedepot / "attributes.csv",
        ["product_uid", "name", "value"],
        [(100001, "Bullet01", "strong"), (100001, "MFG Brand Name", "Simpson")],
    )
    dataset = Dataset.open(import_homedepot(homedepot, tmp_path / "out"))
    products = dataset.table("products")
    assert products["description"].to_list() == [None, "Not only, but\nalso ½ done", None, None]
    assert products["brand"].to_list() == ["Simpson", None, None, None]
    assert "products.brand" in dataset.spec.features.sparse


def test_homedepot_refusals_leave_nothing(tmp_path, homedepot):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"train\.csv does not exist"):
        import_homedepot(tmp_path, out)
    write_latin1(homedepot / "train.csv", TRAIN[:-1], [(1, 2, "a", "b")])
    with pytest.raises(ValueError, match=r"train\.csv has no column relevance"):
        import_homedepot(homedepot, out)
    write_latin1(homedepot / "train.csv", TRAIN, [(1, 2, "a", "b", 3), (2, 3, "a", "b", 4)])
    with pytest.raises(ValueError, match="relevance in row 1 is not a rating"):
        import_homedepot(homedepot, out)
    assert not out.exists()


def test_homedepot_as_published(tmp_path):
    pairs = pl.read_parquet(shared("homedepot_relevance/pairs.parquet"))
    folder = tmp_path / "csv"
    folder.mkdir()
    text = pairs.write_csv(quote_style="non_numeric")
    (folder / "train.csv").write_text(text, encoding="iso-8859-1", errors="replace", newline="")
    dataset = Dataset.open(import_homedepot(folder, tmp_path / "out"))
    relevance = dataset.table("relevance")
    assert len(relevance) == len(pairs) == 74_067
    assert len(dataset.table("queries")) == 11_795
    assert len(dataset.table("products")) == 54_667
    shares = [(relevance["label"] == label).mean() for label in (0, 1, 2)]
    assert shares == pytest.approx([0.16, 0.38, 0.46], abs=0.005)
    assert check_dataset(dataset) == []


STYLES = (
    "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,"
    "productDisplayName\n"
)


@pytest.fixture
def fashion(tmp_path):
    folder = tmp_path / "fashion"
    (folder / "images").mkdir(parents=True)
    (folder / "styles.csv").write_text(
        STYLES
        + "15970,Men,Apparel,Topwear,Shirts,Navy,Fall,2011,Casual,Navy Shirt\n"
        + "39386,Men,Apparel,Bottomwear,Jeans,Blue,Summer,2012,,Peter, Paul, Blue Jeans\n"
        + "59263,Women,Accessories,Watches,Watches,Silver,Winter,2016.0,Casual,Navy Shirt\n"
        + "60000,Women,Accessories,Watches,Watches,Silver,Winter,2016.0,Casual,\n"
    )
    for id_ in (15970, 39386):
        (folder / "images" / f"{id_}.jpg").write_bytes(jpeg(id_ % 256))
    return folder


def test_fashion_by_hand(tmp_path, fashion):
    dataset = Dataset.open(import_fashion(fashion, tmp_path / "out"))
    assert check_dataset(dataset) == []
    products = dataset.table("products")
    assert products["title"].to_list() == [
        "Navy Shirt",
        "Peter, Paul, Blue Jeans",
        "Navy Shirt",
        None,
    ]
    assert products["category"].to_list() == ["Shirts", "Jeans", "Watches", "Watches"]
    assert products["group_id"].to_list() == ["15970", "39386", "15970", "60000"]
    assert products["image"].to_list() == [jpeg(15970 % 256), jpeg(39386 % 256), None, None]
    assert products["usage"].to_list() == ["Casual", None, "Casual", "Casual"]


def test_fashion_images_by_path(tmp_path, fashion):
    out = import_fashion(fashion, tmp_path / "out", embed_images=False)
    dataset = Dataset.open(out)
    assert check_dataset(dataset) == []
    image = dataset.table("products")["image"]
    assert Path(image[0]).read_bytes() == jpeg(15970 % 256) and image[2] is None


def test_fashion_refusals_leave_nothing(tmp_path, fashion):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"neither styles\.csv .* nor products\.parquet"):
        import_fashion(tmp_path, out)
    (fashion / "styles.csv").write_text(STYLES + "1,Men,Apparel\n")
    with pytest.raises(ValueError, match="line 2 has 3 fields where the header has 10"):
        import_fashion(fashion, out)
    (fashion / "styles.csv").write_text("id,gender\n1,Men\n")
    with pytest.raises(ValueError, match="has no column productDisplayName"):
        import_fashion(fashion, out)
    assert not out.exists()


def test_fashion_from_parquet(tmp_path):
    source = shared("fashion44k")
    folder = tmp_path / "small"
    folder.mkdir()
    pl.scan_parquet(source / "products.parquet").head(300).sink_parquet(folder / "products.parquet")
    pl.scan_parquet(source / "images_60x80.parquet").head(300).sink_parquet(
        folder / "images_60x80.parquet"
    )
    dataset = Dataset.open(import_fashion(folder, tmp_path / "out"))
    products = dataset.table("products")
    assert len(products) == 300 and products["image"].null_count() == 0
    assert "description" not in products.columns
    assert check_dataset(dataset) == []


@pytest.fixture
def log():
    rng = np.random.default_rng(0)
    pages = [9, 4, 7, *range(100, 157)]
    return pl.DataFrame(
        {
            "session": [f"s{page % 5}" for page in pages for _ in range(3)],
            "serp": [page for page in pages for _ in range(3)],
            "query": [f"q{page % 4}" for page in pages for _ in range(3)],
            "loc": 0.0,
            "rank": [1, 2, 3] * len(pages),
            "url": [f"d{i % 11}" for i in range(3 * len(pages))],
            "click": rng.integers(0, 2, 3 * len(pages)),
        }
    )


def test_a_log_without_times_gets_a_clock_in_file_order(tmp_path, log):
    dataset = Dataset.open(import_clicks(log, tmp_path / "out"))
    assert check_dataset(dataset) == []
    table = dataset.table("impressions")
    assert table["request_id"].to_list()[:7] == ["9", "9", "9", "4", "4", "4", "7"]
    seconds = (table["time"] - table["time"][0]).dt.total_seconds()
    assert seconds.to_list()[:7] == [0, 0, 0, 1, 1, 1, 2]
    assert str(table["time"][0]) == "2020-01-01 00:00:00+00:00"
    assert table["product_id"].to_list() == log["url"].to_list()


def test_impressions_alone_reach_the_arrays(tmp_path, log):
    log.write_parquet(tmp_path / "log.parquet")
    dataset = Dataset.open(import_clicks(tmp_path / "log.parquet", tmp_path / "out"))
    split = dataset.split()
    pipeline = FeaturePipeline(dataset.spec).fit(dataset, split.train)
    examples = pipeline.transform(split.test)
    assert examples.sparse_names == ("user_id", "query_id", "product_id", "position")
    assert (examples.history_NL == -1).all() and examples.label_N is not None


def test_other_logs_name_their_columns(tmp_path, log):
    columns = {
        "user_id": "session",
        "request_id": "serp",
        "query_id": "query",
        "product_id": "url",
        "position": "rank",
        "clicked": "click",
        "time": "at",
    }
    log = log.with_columns(at=pl.datetime(2024, 1, 1) + pl.duration(hours=pl.int_range(pl.len())))
    out = import_clicks(
        log, tmp_path / "out", columns=columns, position_is_feature=False, name="mine"
    )
    dataset = Dataset.open(out)
    assert dataset.table("impressions")["time"].dt.replace_time_zone(None).equals(log["at"])
    assert "position" not in dataset.spec.features.sparse and dataset.spec.name == "mine"
    with pytest.raises(ValueError, match=r"missing: \['user_id'\], unknown: \['user'\]"):
        wrong = {"user" if ours == "user_id" else ours: column for ours, column in columns.items()}
        import_clicks(log, tmp_path / "x", columns=wrong)
    with pytest.raises(ValueError, match="the table has no column click"):
        import_clicks(log.drop("click"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_clara2_as_published(tmp_path):
    dataset = Dataset.open(import_clicks(shared("clara2/serp_clicks.parquet"), tmp_path / "out"))
    table = dataset.table("impressions")
    assert len(table) == 315_640 and table["request_id"].n_unique() == 31_564
    assert table["clicked"].mean() == pytest.approx(0.0296, abs=1e-4)
    split = dataset.split()
    assert len(split.test) == pytest.approx(0.2 * len(table), abs=10)
    assert check_dataset(dataset) == []
    pipeline = FeaturePipeline(dataset.spec).fit(dataset, split.train)
    assert len(pipeline.transform(split.test)) == len(split.test)
