"""A fit for the ranks of a torchrun job, and a group of one rank to carry it out."""

import dataclasses
import gc

import numpy as np
import pytest
import torch.distributed as dist

from embeddings.ranks import Ranks
from ranking.fit_job import FitJob
from ranking.tower import TowerRanker


@pytest.fixture(scope="session")
def begun(shop, fit_config):
    """A fit with vectors, a production tower and a table of its own for the history, of some of
    the non-clicks, with weights of rows and averages of weights; and its network."""
    weight_N = np.random.default_rng(0).uniform(0.5, 2.0, len(shop.examples)).astype(np.float32)
    rows = dataclasses.replace(shop.examples, weight_N=weight_N)
    job, network, _ = TowerRanker(fit_config).begin_fit_(
        rows.take(slice(0, 480)), rows.take(slice(480, 600)), shop.vectors, seed=3
    )
    return job, network


@pytest.fixture(scope="session")
def job_folder(begun, tmp_path_factory):
    """What ``begun`` writes for the ranks."""
    folder = tmp_path_factory.mktemp("sharding") / "job"
    job, network = begun
    job.write_(folder, network)
    return folder


@pytest.fixture(scope="module")
def group_of_one():
    """A process group with this process alone, so that one rank runs what many run."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks()
    gc.collect()
    dist.destroy_process_group()


@pytest.fixture
def dropping(job_folder):
    """A job with dropout, whose best check comes long before its end."""
    changes = {"dropout": 0.3, "vector_dropout": 0.2, "max_epochs": 4, "lr": 0.03, "patience": 99}
    job = FitJob.read(job_folder)
    return dataclasses.replace(job, config=job.config.model_copy(update=changes))
