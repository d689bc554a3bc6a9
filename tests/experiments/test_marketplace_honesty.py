"""The world is not rigged: knowing relevance pays exactly as far as shoppers care for it."""

import numpy as np
import pytest

from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.world import World, make_world

CLASS_RATE = np.array(WorldParameters().click_rate_by_class)


def true_ctr_lift(folder) -> float:
    """Exact CTR lift of ranking by true relevance over ranking by the bid alone."""
    world = World.load(folder / "truth")
    requests = world.draw_requests(4000, seed=3)
    blind = world.run(requests, np.full(requests.class_RK.shape, 0.05)).p_click_RS.sum()
    knowing = world.run(requests, CLASS_RATE[requests.class_RK]).p_click_RS.sum()
    return float(knowing / blind - 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_an_effect_of_relevance_its_lift_vanishes(tmp_path, seed):
    lift = {}
    for effect in (0.0, 0.5, 1.0):
        parameters = WorldParameters(relevance_effect=effect)
        folder = tmp_path / str(effect)
        made = make_world(folder, products=300, requests=800, seed=seed, parameters=parameters)
        lift[effect] = true_ctr_lift(made)
    assert abs(lift[0.0]) < 0.02
    assert lift[1.0] > lift[0.5] > 0.05
