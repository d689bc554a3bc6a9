import shlex
from typing import Annotated

import pytest
import tyro

from experiments.config import RunConfig
from experiments.repeat_command import repeat_command
from ranking.tower_config import TowerConfig

CONFIGS = {
    "as it comes": {},
    "named variants": {"variants": ("production", "dashclip"), "seeds": 3},
    "switched off": {"simulate": False, "track": False},
    "another network": {
        "tower": TowerConfig(
            use_vectors=False, cross_rank=None, head=(32, 16), attention_softmax=True
        ),
        "confidence": 0.9,
    },
}


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_the_command_gives_the_same_configuration_back(settings):
    config = RunConfig.model_validate({"data": "a folder", "out": "o", **settings})
    words = shlex.split(repeat_command(config))
    assert words[:2] == ["adtower", "run"]
    told = tyro.cli(Annotated[RunConfig, tyro.conf.arg(name="")], args=words[2:])
    assert told == config


def test_defaults_are_not_repeated_and_nothing_is_removed():
    config = RunConfig.model_validate({"data": "d", "out": "o", "overwrite": True})
    assert repeat_command(config) == "adtower run --data d --out o --seed 0 --seeds 1"
