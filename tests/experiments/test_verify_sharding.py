"""The verb verify-sharding, on a dataset of one's own."""

import pytest

from experiments.config import RunConfig
from experiments.marketplace.world import make_world
from experiments.verify_sharding import verify_sharding


@pytest.mark.slow
def test_the_command_shows_it_on_a_dataset_of_the_users_own(tmp_path, fit_config):
    """Two ranks within the tolerance after 200 steps; what cannot be compared is refused."""
    world = make_world(tmp_path / "world", products=120, requests=2000, seed=0)
    config = RunConfig(
        data=world, out=tmp_path / "run", tower=fit_config.model_copy(update={"attention": "none"})
    )
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
