from dataclasses import replace

import numpy as np
import pytest

from features.examples import Examples


@pytest.fixture
def examples():
    return Examples(
        sparse_names=("a",),
        sparse_NF=np.arange(4, dtype=np.int32)[:, None],
        vocabulary_sizes=(4,),
        dense_names=(),
        dense_NC=np.zeros((4, 0), np.float32),
        product_N=np.array([3, 2, 1, -1], np.int32),
        query_N=np.zeros(4, np.int32),
        history_NL=np.full((4, 2), -1, np.int32),
        user_N=np.array([0, 0, 1, 1]),
        request_N=np.array([0, 0, 1, 1]),
        time_us_N=np.arange(4),
        label_N=np.array([0, 1, 0, 1], np.float32),
    )


@pytest.mark.parametrize(
    "rows", [np.array([2, 0]), np.array([False, True, False, True]), slice(1, 3), slice(0, 0)]
)
def test_take_takes_every_array_alike(examples, rows):
    taken = examples.take(rows)
    assert taken.product_N.tolist() == examples.product_N[rows].tolist()
    assert taken.sparse_NF.ravel().tolist() == np.arange(4)[rows].tolist()
    assert taken.label_N.tolist() == examples.label_N[rows].tolist()
    assert len(taken) == len(examples.product_N[rows]) and taken.sparse_names == ("a",)


def test_absent_labels_stay_absent(examples):
    assert replace(examples, label_N=None).take(slice(2)).label_N is None


def test_arrays_that_do_not_fit_are_refused(examples):
    with pytest.raises(ValueError, match=r"4 rows, unlike query_N \(3,\)"):
        replace(examples, query_N=np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="2 names"):
        replace(examples, sparse_names=("a", "b"))
    with pytest.raises(ValueError, match="1 names"):
        replace(examples, dense_names=("x",))
