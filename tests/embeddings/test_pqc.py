import math

import pytest
import torch
import torch.nn.functional as F

from embeddings.pqc import UNKNOWN, graded_pair_loss, pair_contrast, pqc_loss


def test_pair_contrast_by_hand_and_its_empty_row():
    logit = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    positive = torch.tensor([[True, True, False], [True, False, False]])
    negative = torch.tensor([[False, False, True], [False, False, False]])
    loss = pair_contrast(logit, positive, negative)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + 0) / 3
    assert float(loss.detach()) == pytest.approx(expected)
    loss.backward()
    assert torch.isfinite(logit.grad).all()


def gradient_of_scores(label):
    """Gradient of pqc_loss with respect to the cosine of each pair, through unit vectors."""
    torch.manual_seed(1)
    query = torch.randn(len(label), 64)
    product = F.normalize(torch.randn(len(label[0]), 64), dim=1).requires_grad_()
    loss = pqc_loss(query, product, torch.tensor(label), temperature=0.1)
    loss.backward()
    # At right angles to all else, moving a product along a query changes their cosine alone.
    return -(F.normalize(query, dim=1) @ product.grad.T)


def test_pqc_pulls_by_grade():
    pull = gradient_of_scores([[2, 1, 0, UNKNOWN]])[0]
    assert pull[0] > 0
    assert pull[2] < 0
    assert pull[3] < 0
    assert pull[2] < pull[1]


def test_pqc_by_hand():
    query = torch.tensor([[1.0, 0.0]])
    product = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # Cosines 1, 0, -1 for labels 2, 1, 0. Products against queries: one query, no rival.
    loss = pqc_loss(query, product, torch.tensor([[2, 1, 0]]), temperature=1.0)
    two = math.log(1 + (1 + math.exp(-1)) / math.e)
    one = math.log(1 + math.exp(-1))
    assert float(loss) == pytest.approx(two / 2 + one)


def test_a_known_positive_is_never_a_negative():
    # Moving a label-2 product onto its query may change only its own term and its own rivals'.
    torch.manual_seed(0)
    query, product = torch.randn(1, 8), torch.randn(3, 8)
    label = torch.tensor([[2, 2, 1]])
    logit = torch.tensor([[0.3, 0.1, 0.2]], requires_grad=True)
    pair_contrast(logit, label == 2, label < 2)[None].sum().backward()
    assert (logit.grad[0, :2] < 0).all()
    # The label-1 term has no label-0 rival here, so it is silent however near label 2 comes.
    nearer = product.clone()
    nearer[1] = query[0]
    before = pqc_loss(query, product, label, temperature=0.1)
    assert float(pqc_loss(query, nearer, label, temperature=0.1)) < float(before)


@pytest.mark.parametrize(
    ("label", "message"),
    [([[0, UNKNOWN]], "nothing to draw together"), ([[3, 0]], "labels must be")],
)
def test_pqc_refuses_labels_it_cannot_use(label, message):
    with pytest.raises(ValueError, match=message):
        pqc_loss(torch.randn(1, 4), torch.randn(2, 4), torch.tensor(label), temperature=0.1)


def test_graded_pairs_by_hand_and_without_grades():
    cosine, label = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([2, 1, 0])
    expected = sum(math.log(1 + math.exp(-gap)) for gap in (0.4, 0.8, 0.4)) / 3
    assert float(graded_pair_loss(cosine, label, temperature=1.0)) == pytest.approx(expected)
    assert float(graded_pair_loss(cosine, torch.ones(3), temperature=1.0)) == 0
    flat = graded_pair_loss(torch.zeros(3), label, temperature=0.1)
    assert float(flat) == pytest.approx(math.log(2))
