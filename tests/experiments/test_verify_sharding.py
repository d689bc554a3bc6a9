"""The verb verify-sharding, on a dataset of one's own."""

import pytest

from experiments.config import RunConfig
from experiments.marketplace.world import make_world
from experiments.verify_sharding import verify_sharding
from ranking.tower_config import TowerConfig

SMALL = TowerConfig(
    batch_size=48,
    dropout=0.0,
    vector_dropout=0.0,
    bf16="off",
    embedding_dim=8,
    production_mlp=(16,),
    head=(8,),
    tower_mlp=(8, 4),
    projected_dim=4,
    ema_decay=0.9,
    negative_rate=0.8,
)


@pytest.mark.slow
def test_the_command_shows_it_on_a_dataset_of_the_users_own(tmp_path):
    """Two ranks within the tolerance after 200 steps; what cannot be compared is refused."""
    world = make_world(tmp_path / "world", products=120, requests=2000, seed=0)
    config = RunConfig(data=world, out=tmp_path / "run", tower=SMALL)
    verdict = verify_sharding(config, steps=200)
    assert verdict.agrees
    assert verdict.weight_difference < 1e-4
    assert verdict.whole_batch_difference > verdict.weight_difference
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="variant 'logistic' is no network with id tables"):
        verify_sharding(config.model_copy(update={"variants": ("logistic",)}))
    odd = config.tower.model_copy(update={"batch_size": 33})
    with pytest.raises(ValueError, match="batch_size=33 cannot be shared by 2 ranks"):
        verify_sharding(config.model_copy(update={"tower": odd}))
