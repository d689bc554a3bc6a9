"""Id tables over fbgemm: against torchrec, and what becomes of large ones."""

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ranking.fused_tables import FusedTables

NAMES, SIZES = ("user", "brand"), (50, 7)


@pytest.fixture
def tables(either_kernels):
    torch.manual_seed(0)
    return FusedTables(NAMES, SIZES, 8, learning_rate=0.1)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = [torch.randint(size, (16,), generator=generator) for size in SIZES]
        yield torch.stack(ids, dim=1).int(), torch.randn(16, 16, generator=generator)


@pytest.mark.filterwarnings("ignore")
def test_the_updates_are_those_of_torchrec(tables):
    peer = FusedEmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"t_{name}", embedding_dim=8, num_embeddings=size, feature_names=[name]
            )
            for name, size in zip(NAMES, SIZES, strict=True)
        ],
        optimizer_type=RowWiseAdagrad,
        optimizer_kwargs={"learning_rate": 0.1, "eps": 1e-8},
        device=torch.device("cpu"),
    )
    theirs = [peer.embedding_bags[f"t_{name}"].get_parameter("weight") for name in NAMES]
    with torch.no_grad():
        for weight_VE, own_VE in zip(theirs, tables.weights(), strict=True):
            weight_VE.copy_(own_VE)
    for sparse_BF, grad_BW in batches(5):
        tables(sparse_BF).backward(grad_BW)
        bags = KeyedJaggedTensor(
            keys=list(NAMES), values=sparse_BF.t().reshape(-1).long(),
            lengths=torch.ones(32, dtype=torch.int64),
        )  # fmt: skip
        by_name = peer(bags).to_dict()
        torch.cat([by_name[name] for name in NAMES], dim=1).backward(grad_BW)
    for own_VE, weight_VE in zip(tables.weights(), theirs, strict=True):
        torch.testing.assert_close(own_VE.detach(), weight_VE.detach(), rtol=1e-6, atol=1e-7)


def test_tables_lie_end_to_end_and_are_not_copied(tables):
    whole_VE = tables.end_to_end()
    assert torch.equal(whole_VE, torch.cat([weight.detach() for weight in tables.weights()]))
    tables.weights()[1].data.fill_(3.0)
    assert (whole_VE[SIZES[0] :] == 3.0).all() and not (whole_VE[: SIZES[0]] == 3.0).any()


def test_a_table_begun_anew_forgets_its_sums_too(tables):
    for sparse_BF, grad_BW in batches(3):
        tables(sparse_BF).backward(grad_BW)
    small_VE = tables.weights()[1].detach().clone()
    assert tables.draw_again(20) == ["user"]
    user_V, brand_V = tables.accumulators()
    assert (user_V == 0).all() and (brand_V > 0).any()
    user_VE, brand_VE = tables.weights()
    assert user_VE.abs().max() < 0.1 and (user_VE[0] == 0).all()
    assert torch.equal(brand_VE, small_VE)


@pytest.mark.parametrize("wrong", [7, -1])
def test_an_id_beyond_its_table_is_refused(tables, wrong):
    with pytest.raises(RuntimeError, match=f"brand has the id {wrong}; its table takes 0 to 6"):
        tables(torch.tensor([[1, 0], [1, wrong]], dtype=torch.int32))


def test_moving_a_network_leaves_its_tables_where_they_learn(tables):
    before_VE = tables.weights()[0].detach().clone()
    module = torch.nn.Sequential(tables).double()
    sparse_BF, grad_BW = next(batches(1))
    module(sparse_BF).backward(grad_BW)
    assert tables.weights()[0].dtype == torch.float32
    assert not torch.equal(tables.weights()[0], before_VE)
