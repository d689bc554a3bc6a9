import math

import pytest
import torch

from embeddings.collapse import PATIENCE, Alarm, effective_rank, modality_gap, uniformity


def test_effective_rank_by_hand():
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert effective_rank(torch.eye(2).repeat(3, 1)) == pytest.approx(2.0, abs=1e-4)


def test_uniformity_by_hand():
    assert uniformity(torch.ones(3, 2)) == pytest.approx(0.0, abs=1e-5)
    # Unit vectors at right angles are at squared distance 2.
    assert uniformity(torch.eye(4)) == pytest.approx(-4.0)


def test_the_modality_gap_by_hand():
    east, north = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 2.0]] * 3)
    assert modality_gap(east, east) == 0
    assert modality_gap(east, north) == pytest.approx(math.sqrt(2))
    assert modality_gap(east, -east) == 2


def test_a_dead_run_is_stopped_with_what_was_wrong_and_what_to_do():
    alarm, dead, alive = Alarm(), torch.ones(10, 8), torch.randn(10, 8)
    for _ in range(PATIENCE - 1):
        alarm.check(dead, alive, torch.arange(10), where="step 9")
    with pytest.raises(ValueError, match=r"collapsed at step 9: effective_rank_image is 1") as told:
        alarm.check(dead, alive, torch.arange(10), where="step 9")
    assert "uniformity_image" in str(told.value)
    assert "_text" not in str(told.value).split(", for ")[0]
    assert "Lower the learning rates" in str(told.value)


def test_one_good_check_clears_the_alarm():
    alarm, dead, alive = Alarm(), torch.ones(10, 8), torch.randn(10, 8)
    for vectors in (dead, dead, alive, dead, dead):
        alarm.check(vectors, alive, torch.arange(10), where="x")
    assert alarm.failed == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"drift": 0.9}, "queue_drift is 0.9"), ({"gap": True}, "modality_gap is 1.9")],
)
def test_stale_keys_and_a_gap_are_alarms_too(changes, message):
    torch.manual_seed(0)
    alarm, vectors = Alarm(failed=PATIENCE - 1), torch.randn(12, 6)
    image, text = vectors, vectors
    if "gap" in changes:
        east = torch.tensor([3.0, 0, 0, 0, 0, 0])
        image, text = 0.3 * vectors + east, 0.3 * vectors - east
    with pytest.raises(ValueError, match=message):
        alarm.check(image, text, torch.arange(12), drift=changes.get("drift", math.nan), where="x")


def test_an_unarmed_alarm_and_a_batch_of_few_groups_only_measure():
    alarm, dead = Alarm(failed=PATIENCE - 1), torch.ones(10, 8)
    measures = alarm.check(dead, dead, torch.arange(10), armed=False, where="x")
    assert measures["uniformity_text"] == pytest.approx(0.0, abs=1e-5)
    alarm.check(dead, dead, torch.zeros(10), where="x")
