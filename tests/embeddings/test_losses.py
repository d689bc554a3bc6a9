import math

import pytest
import torch
import torch.nn.functional as F

from embeddings.losses import (
    UNKNOWN,
    draw_itm_negatives,
    graded_pair_loss,
    itc_loss,
    itm_loss,
    pair_contrast,
    pqc_loss,
)


def test_itc_by_hand():
    # Image and text agree and the two products are at right angles: logits 1 and 0 each way.
    eye = torch.eye(2)
    loss = itc_loss(3 * eye, eye, torch.tensor([0, 1]), temperature=1.0)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)))


def test_embeddings_without_information_score_log_b():
    same = torch.ones(8, 4)
    loss = itc_loss(same, same, torch.arange(8), temperature=0.07)
    assert float(loss) == pytest.approx(math.log(8), abs=1e-5)


def test_itc_with_distinct_groups_is_the_cross_entropy_of_clip():
    torch.manual_seed(0)
    image, text = torch.randn(6, 5), torch.randn(6, 5)
    logits = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / 0.1
    expected = (
        F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))
    ) / 2
    assert float(itc_loss(image, text, torch.arange(6), temperature=0.1)) == pytest.approx(
        float(expected)
    )


def test_the_same_group_is_never_pushed_apart():
    # Rows 0 and 1 are one product and equal: two halves of the target, so log 2 remains in both.
    vector = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    loss = itc_loss(vector, vector, torch.tensor([7, 7, 9]), temperature=0.05)
    assert float(loss) == pytest.approx(math.log(2) * 2 / 3, abs=1e-5)
    # Which text of the group stands in which of its rows cannot matter.
    image = torch.tensor([[1.0, 0.2], [0.3, 1.0], [-1.0, 0.0]])
    text = torch.tensor([[1.0, 0.3], [1.0, -0.4], [-1.0, 0.0]])
    group = torch.tensor([7, 7, 9])
    assert float(itc_loss(image, text, group, temperature=0.05)) == pytest.approx(
        float(itc_loss(image, text[[1, 0, 2]], group, temperature=0.05))
    )


@pytest.mark.parametrize(
    ("group", "message"),
    [([4], "batch of one"), ([4, 4, 4], "one group"), ([1, 2], r"must be \(B, D\)")],
)
def test_itc_refuses_what_has_no_negatives(group, message):
    rows = 3 if "must" in message else len(group)
    vectors = torch.randn(rows, 4)
    with pytest.raises(ValueError, match=message):
        itc_loss(vectors, vectors, torch.tensor(group), temperature=0.1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("group", [[0, 1], [0, 0], [0, 0, 1], [5, 6, 5, 7, 5, 5]])
def test_itm_negatives_never_share_the_group_and_the_draw_never_crashes(group, scale):
    # At scale 1e4 the softmax lies wholly on the diagonal: every other weight is exactly 0.
    group = torch.tensor(group)
    logits = scale * (torch.eye(len(group)) * 2 + torch.randn(len(group), len(group)) / 9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        text, image, possible = draw_itm_negatives(logits, group, generator)
        assert torch.equal(possible, (group[:, None] != group).any(1))
        for drawn in (text, image):
            assert (group[drawn] != group)[possible].all()


def test_itm_negatives_are_the_confusable_ones():
    logits = torch.zeros(8, 8)
    logits[0, 5] = 12.0
    text, image, _ = draw_itm_negatives(logits, torch.arange(8), torch.Generator().manual_seed(0))
    assert text[0] == 5
    assert image[5] == 0


def test_a_constant_itm_answer_scores_the_entropy_of_one_third():
    logit = torch.tensor([[math.log(2 / 3), math.log(1 / 3)]]).repeat(6, 1)
    loss = itm_loss(logit, torch.tensor([1, 1, 0, 0, 0, 0]))
    expected = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
    assert float(loss) == pytest.approx(expected)
    assert expected == pytest.approx(0.637, abs=1e-3)


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
