"""A fit as a folder: the rows, vectors and first weights that it was written with."""

import dataclasses

import numpy as np
import torch

from ranking.fit_job import FitJob


def test_a_fit_travels_in_a_folder(begun, job_folder):
    job = FitJob.read(job_folder)
    fresh, network = begun
    assert job.config == fresh.config and job.signature == fresh.signature
    for part in ("train", "validation", "vectors"):
        left, right = getattr(job, part), getattr(fresh, part)
        for field in dataclasses.fields(left):
            one, two = getattr(left, field.name), getattr(right, field.name)
            same = np.array_equal(one, two) if isinstance(two, np.ndarray) else one == two
            assert same, (part, field.name)
    again = job.network(job_folder)
    inputs = job.tensors()[1].batch(slice(0, 50))
    with torch.no_grad():
        assert torch.equal(again.eval()(*inputs), network.eval()(*inputs))
