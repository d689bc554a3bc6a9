import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from experiments.inline_svg import inline_svg
from experiments.model_figure import figure_3
from experiments.model_shape import read_model_shape
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

KINDS = {
    "two towers": {},
    "no vectors": {"use_vectors": False},
    "one tower": {"single_tower": True},
    "without cosines": {"derived": False, "presence": False},
    "full crosses": {"cross_rank": None, "cross_layers": 1},
    "no crosses": {"cross_layers": 0},
    "no MLP": {"production_mlp": ()},
    "no head": {"head": ()},
    "everything": {
        "attention": "ids",
        "position_slots": 5,
        "entire_space": True,
        "semantic_levels": 2,
        "frequency_gate": "product_id",
    },
}


def words(svg: bytes) -> str:
    return " ".join("".join(t.itertext()) for t in ElementTree.fromstring(svg).iter() if t.text)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_every_stored_number_is_in_one_part(record, settings):
    shape, numbers = record.shape_of(**settings)
    assert shape.parameters == numbers
    assert f"{numbers:,} numbers in all" in words(figure_3(shape))


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_the_drawing_passes_into_a_page(record, settings):
    markup = inline_svg(figure_3(record.shape_of(**settings)[0]), prefix="m", label="")
    assert "var(--fig-blue)" in markup and "#" not in markup.replace("url(#", "")


def test_the_sizes_by_hand(record):
    # Five tables of width 16 and one dense column are 81; vectors of 128 are projected to 32:
    # p, q, h, p∘q, p∘h are 160, cosines 2 and masks 3. 81 + 64 + 32 + 5 = 182 enter the head.
    shape, _ = record.shape_of()
    users = shape.tables[0]
    assert (users.feature, users.rows, users.width) == ("user_id", 7366, 16)
    assert shape.crosses.widths == (81, 81, 81) and shape.cross_rank == 32
    # Two crosses of 32 x 81 and 81 x 32 and a bias of 81.
    assert shape.crosses.parameters == 2 * (2 * 32 * 81 + 81)
    assert shape.mlp.widths == (81, 128, 64)
    assert shape.vectors is not None and shape.tower is not None
    assert (shape.vectors.given, shape.vectors.crossed, shape.vectors.plain) == (128, 160, 5)
    assert shape.tower.widths == (165, 64, 32)
    assert shape.head.widths == (182, 64) and shape.logit.widths == (246, 1)
    said = words(figure_3(shape))
    for text in ("7,366 × 16", "165 → 64 → 32", "2 layers, rank 32", "182 → 64", "246 → 1"):
        assert text in said, text


def test_parts_that_a_model_lacks_are_not_drawn(record):
    plain = words(figure_3(record.shape_of(use_vectors=False)[0]))
    assert "Embedding tower" not in plain and "cos(p,q)" not in plain
    full = words(figure_3(record.shape_of(**KINDS["everything"])[0]))
    for part in ("Attention", "Frequency gate", "Position tower", "Purchase tower", "level 2"):
        assert part in full and part not in plain, part


def test_a_stored_model_is_read_from_its_own_weights(small_log, tmp_path):
    config = TowerConfig(max_epochs=1, embedding_dim=8, head=(24,), tower_mlp=(16, 12))
    model = TowerRanker(config).fit(
        small_log.train, small_log.validation, small_log.vectors, seed=0
    )
    model.save_(tmp_path / "model")
    shape = read_model_shape(tmp_path / "model")
    assert shape.parameters == sum(w.numel() for w in model.network_.state_dict().values())
    assert tuple(t.feature for t in shape.tables) == small_log.train.sparse_names
    assert shape.tower is not None and shape.tower.widths[1:] == (16, 12)
    assert shape.head.widths[-1] == 24
    (tmp_path / "model" / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="was the folder copied whole"):
        read_model_shape(tmp_path / "model")


def test_many_features_are_summed_up_in_one_line(record):
    shape, _ = record.shape_of()
    many = replace(shape, tables=shape.tables * 5)
    assert "and 11 more" in words(figure_3(many))
