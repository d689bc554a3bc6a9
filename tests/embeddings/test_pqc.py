import math

import pytest
import torch
import torch.nn.functional as F

from embeddings.pqc import UNKNOWN, Targets, graded_pair_loss, pair_contrast, pqc_loss


def known(label):
    return Targets.of_labels(torch.tensor(label))


def soft(rows, weight=None):
    chance = torch.tensor(rows)
    return Targets(
        chance_BM3=chance,
        weight_BM=torch.ones(chance.shape[:2]) if weight is None else torch.tensor(weight),
    )


def test_pair_contrast_by_hand_and_its_empty_row():
    logit = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    positive = torch.tensor([[True, True, False], [True, False, False]])
    negative = torch.tensor([[False, False, True], [False, False, False]])
    loss = pair_contrast(logit, positive.float(), negative.float())
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + 0) / 3
    assert float(loss.detach()) == pytest.approx(expected)
    loss.backward()
    assert torch.isfinite(logit.grad).all()


def gradient_of_scores(label):
    """Gradient of pqc_loss with respect to the cosine of each pair, through unit vectors."""
    torch.manual_seed(1)
    query = torch.randn(len(label), 64)
    product = F.normalize(torch.randn(len(label[0]), 64), dim=1).requires_grad_()
    loss = pqc_loss(query, product, known(label), temperature=0.1)
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
    loss = pqc_loss(query, product, known([[2, 1, 0]]), temperature=1.0)
    two = math.log(1 + (1 + math.exp(-1)) / math.e)
    one = math.log(1 + math.exp(-1))
    assert float(loss) == pytest.approx(two / 2 + one)


def test_a_known_positive_is_never_a_negative():
    # Moving a label-2 product onto its query may change only its own term and its own rivals'.
    torch.manual_seed(0)
    query, product = torch.randn(1, 8), torch.randn(3, 8)
    label = torch.tensor([[2, 2, 1]])
    logit = torch.tensor([[0.3, 0.1, 0.2]], requires_grad=True)
    pair_contrast(logit, (label == 2).float(), (label < 2).float())[None].sum().backward()
    assert (logit.grad[0, :2] < 0).all()
    # The label-1 term has no label-0 rival here, so it is silent however near label 2 comes.
    nearer = product.clone()
    nearer[1] = query[0]
    before = pqc_loss(query, product, known(label.tolist()), temperature=0.1)
    after = pqc_loss(query, nearer, known(label.tolist()), temperature=0.1)
    assert float(after) < float(before)


@pytest.mark.parametrize(
    ("label", "message"),
    [([[0, UNKNOWN]], "nothing to draw together"), ([[3, 0]], "labels must be")],
)
def test_pqc_refuses_labels_it_cannot_use(label, message):
    with pytest.raises(ValueError, match=message):
        pqc_loss(torch.randn(1, 4), torch.randn(2, 4), known(label), temperature=0.1)


CERTAIN = torch.eye(3)


def test_graded_pairs_by_hand_and_without_grades():
    cosine, label, one = torch.tensor([0.9, 0.5, 0.1]), CERTAIN[[2, 1, 0]], torch.ones(3)
    expected = sum(math.log(1 + math.exp(-gap)) for gap in (0.4, 0.8, 0.4)) / 3
    assert float(graded_pair_loss(cosine, label, one, temperature=1.0)) == pytest.approx(expected)
    assert float(graded_pair_loss(cosine, CERTAIN[[1, 1, 1]], one, temperature=1.0)) == 0
    flat = graded_pair_loss(torch.zeros(3), label, one, temperature=0.1)
    assert float(flat) == pytest.approx(math.log(2))


def test_uncertain_and_lighter_pairs_by_hand_in_the_graded_loss():
    # The first is above the second with chance .8 * 1, and never below it (class 0 is the lowest).
    cosine = torch.tensor([0.5, 0.2, 0.0])
    chance = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    weight = torch.tensor([1.0, 0.5, 0.0])
    loss = graded_pair_loss(cosine, chance, weight, temperature=1.0)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-0.3)))
    # Now both ways round: the third, of weight 1, is above the first with .5, never below it.
    both = graded_pair_loss(cosine, chance, torch.ones(3), temperature=1.0)
    terms = ((0.8, 0.3), (0.5, -0.5), (1.0, -0.2))
    expected = sum(w * math.log(1 + math.exp(-gap)) for w, gap in terms) / 2.3
    assert float(both) == pytest.approx(expected)


def test_soft_targets_equal_hard_ones_where_they_are_certain():
    torch.manual_seed(3)
    label = torch.randint(-1, 3, (6, 9))
    query, product = torch.randn(6, 8), torch.randn(9, 8)
    logit = F.normalize(query, dim=1) @ F.normalize(product, dim=1).T / 0.1

    def hard(logit, positive, negative):
        rival = logit.masked_fill(~negative, float("-inf")).logsumexp(1, keepdim=True)
        return F.softplus(rival - logit)[positive].mean()

    two, one, rest = label == 2, label == 1, label <= 0
    forward, backward = hard(logit, two, ~two), hard(logit.T, two.T, ~two.T)
    expected = (forward + backward) / 2 + hard(logit, one, rest)
    loss = pqc_loss(query, product, Targets.of_labels(label), temperature=0.1)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_an_uncertain_negative_counts_by_its_chance():
    query = torch.tensor([[1.0, 0.0]])
    product = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # The second is most likely class 0 and of class 2 with .4: a negative of weight .6.
    targets = soft([[[0.0, 0.0, 1.0], [0.6, 0.0, 0.4], [1.0, 0.0, 0.0]]], [[1.0, 0.0, 1.0]])
    loss = pqc_loss(query, product, targets, temperature=1.0)
    assert float(loss) == pytest.approx(math.log(1 + (0.6 + math.exp(-1)) / math.e) / 2)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_is_likeliest_positive_is_never_pushed_away_by_its_own_grade(seed):
    torch.manual_seed(seed)
    chance = torch.rand(5, 7, 3).pow(3)
    targets = soft((chance / chance.sum(-1, keepdim=True)).tolist())
    query = F.normalize(torch.randn(5, 64), dim=1)
    product = F.normalize(torch.randn(7, 64), dim=1).requires_grad_()
    bank = F.normalize(torch.randn(3, 64), dim=1).requires_grad_()
    likeliest = targets.likeliest_BM
    # Only the bank is asked: it has no pull, so every gradient there is that of a negative.
    bank_chance = CERTAIN[torch.randint(0, 3, (5, 3))]
    bank_targets = Targets(chance_BM3=bank_chance, weight_BM=torch.ones(5, 3))
    pqc_loss(
        query, product, targets, temperature=0.1, bank_QD=bank, bank_targets=bank_targets
    ).backward()
    of_two = bank_chance[..., 2].bool().all(0)
    assert (bank.grad[of_two] == 0).all()
    lowest = bank_chance[..., 0].bool().all(0)
    assert (bank.grad[lowest] != 0).any(1).all()
    # In the batch: silencing every pull (all weights but one pair's) leaves pushes alone.
    pair = (likeliest == 2).nonzero()
    if len(pair) > 1:
        row, column = pair[0].tolist()
        weight = torch.zeros(5, 7)
        weight[row, column] = 1
        product.grad = None
        alone = Targets(chance_BM3=targets.chance_BM3, weight_BM=weight)
        pqc_loss(query[[row]], product, one_row(alone, row), temperature=0.1).backward()
        equals = (likeliest[row] == 2) & (torch.arange(7) != column)
        assert (product.grad[equals] == 0).all()


def one_row(targets, row):
    return Targets(chance_BM3=targets.chance_BM3[[row]], weight_BM=targets.weight_BM[[row]])


def test_a_bank_equals_the_same_products_in_the_batch_as_unjudged_ones():
    torch.manual_seed(5)
    query, product, bank = torch.randn(3, 8), torch.randn(4, 8), torch.randn(5, 8)
    label = torch.tensor([[2, 0, -1, -1], [-1, 2, 0, -1], [-1, -1, 0, 2]])
    empty = torch.full((3, 5), UNKNOWN)
    inside = pqc_loss(
        query,
        torch.cat([product, bank]),
        Targets.of_labels(torch.cat([label, empty], 1)),
        temperature=0.1,
    )
    beside = pqc_loss(
        query,
        product,
        Targets.of_labels(label),
        temperature=0.1,
        bank_QD=bank,
        bank_targets=Targets.of_labels(empty),
    )
    # Against queries, a product of the batch has no rival in the bank, so both directions agree.
    assert float(beside) == pytest.approx(float(inside), rel=1e-6)
    nothing = pqc_loss(
        query,
        product,
        Targets.of_labels(label),
        temperature=0.1,
        bank_QD=bank[:0],
        bank_targets=Targets.of_labels(empty[:, :0]),
    )
    alone = pqc_loss(query, product, Targets.of_labels(label), temperature=0.1)
    assert float(nothing) == float(alone)
    with pytest.raises(ValueError, match="come together"):
        pqc_loss(query, product, Targets.of_labels(label), temperature=0.1, bank_QD=bank)
