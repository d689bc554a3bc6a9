import math

import pytest
import torch
import torch.nn.functional as F

from embeddings.losses import (
    Keys,
    all_texts_loss,
    cosine_logits,
    draw_itm_negatives,
    itc_loss,
    itm_loss,
    momentum_itc_loss,
    sigmoid_bias,
    sigmoid_loss,
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


def test_the_contrast_with_all_texts_by_hand():
    # Two images, three texts at right angles; image 1 has two texts of its group.
    image, text = torch.eye(3)[:2], torch.eye(3)
    groups = torch.tensor([0, 1]), torch.tensor([0, 1, 1])
    loss = all_texts_loss(image, text, *groups, temperature=1.0)
    first = math.log(math.e + 2) - 1
    second = math.log(math.e + 2) - 0.5
    assert float(loss) == pytest.approx((first + second) / 2)
    smooth = all_texts_loss(
        image[:1], text, groups[0][:1], groups[1], temperature=1.0, smoothing=0.3
    )
    assert float(smooth) == pytest.approx(math.log(math.e + 2) - (0.7 + 0.1))


def keys_of(image, text, group, *, queue=0, kind=None, filled=None):
    count = len(group)
    return Keys(
        image_KD=F.normalize(image, dim=1),
        text_KD=F.normalize(text, dim=1),
        group_K=torch.as_tensor(group),
        kind_K=torch.zeros(count, dtype=torch.int64) if kind is None else torch.as_tensor(kind),
        filled_K=torch.ones(count, dtype=torch.bool) if filled is None else torch.as_tensor(filled),
    )


def test_soft_weight_zero_equals_the_hard_cross_entropy():
    torch.manual_seed(0)
    image, text = torch.randn(4, 5), torch.randn(4, 5)
    key_image, key_text = torch.randn(7, 5), torch.randn(7, 5)
    loss = momentum_itc_loss(
        image, text, keys_of(key_image, key_text, range(7)), temperature=0.2, soft_weight=0.0
    )
    expected = (
        F.cross_entropy(cosine_logits(image, key_text, 0.2), torch.arange(4))
        + F.cross_entropy(cosine_logits(text, key_image, 0.2), torch.arange(4))
    ) / 2
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)


def test_keys_equal_to_the_batch_give_the_contrast_within_it():
    torch.manual_seed(0)
    image, text, group = torch.randn(5, 8), torch.randn(5, 8), torch.tensor([0, 1, 1, 2, 3])
    loss = momentum_itc_loss(
        image, text, keys_of(image, text, group), temperature=0.1, soft_weight=0.0
    )
    assert float(loss) == pytest.approx(float(itc_loss(image, text, group, temperature=0.1)))


def test_soft_targets_by_hand():
    # Two products, keys at right angles. The teacher sees logits 1 and 0, so it believes
    # p = e / (e + 1) in the own key; the target of the own key is .6 + .4 p.
    eye = torch.eye(2)
    loss = momentum_itc_loss(eye, eye, keys_of(eye, eye, [0, 1]), temperature=1.0, soft_weight=0.4)
    p = math.e / (math.e + 1)
    own = 0.6 + 0.4 * p
    assert float(loss) == pytest.approx(-(own * math.log(p) + (1 - own) * math.log(1 - p)))


def test_unfilled_and_foreign_kinds_of_keys_do_not_count():
    torch.manual_seed(0)
    image, text = torch.randn(3, 4), torch.randn(3, 4)
    key_image, key_text = torch.randn(6, 4), torch.randn(6, 4)
    alone = momentum_itc_loss(
        image,
        text,
        keys_of(key_image[:3], key_text[:3], [0, 1, 2]),
        temperature=0.1,
        soft_weight=0.3,
    )
    for mask in (
        {"filled": [True] * 3 + [False] * 3},
        {"kind": [0, 0, 0, 1, 2, 1]},
    ):
        keys = keys_of(key_image, key_text, [0, 1, 2, 3, 4, 5], **mask)
        loss = momentum_itc_loss(image, text, keys, temperature=0.1, soft_weight=0.3)
        assert float(loss) == pytest.approx(float(alone), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("soft_weight", [0.0, 0.4])
def test_a_key_of_the_own_group_is_never_pushed_away(seed, soft_weight):
    # Key 3 lies in the queue. Image 0 stands far from it and is drawn nearer if they are one
    # product, pushed further off if they are not.
    torch.manual_seed(seed)
    text, key_image, key_text = torch.randn(3, 16), torch.randn(5, 16), torch.randn(5, 16)
    direction = F.normalize(key_text[3], dim=0)
    far = torch.randn(3, 16)
    far = far - (far @ direction)[:, None] * direction - 2 * direction

    def pull(group):
        image = far.clone().requires_grad_()
        keys = keys_of(key_image, key_text, torch.tensor(group))
        momentum_itc_loss(image, text, keys, temperature=0.5, soft_weight=soft_weight).backward()
        return -float(image.grad[0] @ direction)

    assert pull([0, 1, 2, 0, 4]) > 0
    assert pull([0, 1, 2, 0, 4]) > pull([0, 1, 2, 3, 4])


def test_momentum_contrast_refuses_keys_of_one_group():
    vectors = torch.randn(2, 4)
    with pytest.raises(ValueError, match="no negatives"):
        momentum_itc_loss(
            vectors, vectors, keys_of(vectors, vectors, [5, 5]), temperature=0.1, soft_weight=0.0
        )


def test_kinds_are_contrasted_apart():
    torch.manual_seed(0)
    image, text = torch.randn(6, 4), torch.randn(6, 4)
    kind = torch.tensor([0, 0, 0, 0, 1, 1])
    group = torch.arange(6)
    whole = itc_loss(image, text, group, temperature=0.1, kind_B=kind)
    apart = [
        itc_loss(image[kind == k], text[kind == k], group[kind == k], temperature=0.1)
        for k in (0, 1)
    ]
    assert float(whole) == pytest.approx(float((4 * apart[0] + 2 * apart[1]) / 6))


def test_sigmoid_by_hand():
    # Logits 1 on the diagonal and 0 off it, bias 0: two pairs of each in a batch of 2.
    eye = torch.eye(2)
    loss = sigmoid_loss(eye, eye, torch.tensor([0, 1]), temperature=1.0, bias=0.0)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)) + math.log(2))


def test_the_sigmoid_bias_is_where_ignorance_costs_least():
    batch = 16
    silent = torch.ones(batch, 4)
    at = sigmoid_bias(batch)

    def loss(bias):
        # The cosine of equal vectors is 1; the bias takes it back.
        group = torch.arange(batch)
        return float(sigmoid_loss(silent, silent, group, temperature=1.0, bias=bias - 1))

    assert loss(at) < min(loss(at - 0.2), loss(at + 0.2), loss(-10.0))
    share = 1 / batch
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert loss(at) == pytest.approx(batch * entropy, rel=1e-5)


def test_rows_that_lack_a_side_are_not_drawn_for_matching():
    generator = torch.Generator().manual_seed(0)
    whole = torch.tensor([True, False, True, True, False])
    for _ in range(30):
        text, image, possible = draw_itm_negatives(
            torch.randn(5, 5), torch.arange(5), generator, whole_B=whole
        )
        assert whole[text[possible]].all()
        assert whole[image[possible]].all()
        assert torch.equal(possible, whole)
