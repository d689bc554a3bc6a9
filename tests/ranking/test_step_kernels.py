"""The compiled kernels of a training step: against torch and fbgemm, and where there are none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ranking import fused_tables, step_kernels
from ranking.fused_tables import EPSILON, FusedTables
from ranking.layers import side_by_side

ROOT = Path(__file__).parents[2]
ROWS, WIDTH, SIZES = 300, 12, (50, 7, 100_000)
"""More rows than two of the blocks that sums are taken over, and no multiple of them."""


def tables():
    torch.manual_seed(0)
    return FusedTables(("user", "brand", "query"), SIZES, WIDTH, learning_rate=0.1)


def batch(seed=1, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    skewed_BF = torch.rand(rows, len(SIZES), generator=generator) ** 3
    sparse_BF = (skewed_BF * torch.tensor(SIZES)).int()
    return sparse_BF, torch.randn(rows, 2, generator=generator)


def learned(sparse_BF, grad_BW, *, compiled, monkeypatch, steps=3):
    """Weights and sums of fresh tables after some steps, one way or the other."""
    own = tables()
    with monkeypatch.context() as patch:
        if not compiled:
            patch.setattr(fused_tables, "step_kernels", lambda: None)
        for _ in range(steps):
            own._rows.learn_(sparse_BF, grad_BW)
    return own._rows.weight_VE, own._rows.sum_V


def test_rows_and_dense_columns_are_rounded_as_torch_rounds_them(kernels):
    own, (sparse_BF, dense_BC) = tables(), batch()
    rows = own._rows
    ends = torch.tensor([1.00390625, float("inf"), float("nan")])
    # A tie, which goes to the even side, and the last of the not-a-numbers: it must stay one.
    ends = torch.cat([ends, torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)])
    rows.weight_VE[:4] = ends[:, None]
    out_BW, beyond = kernels.look_up(sparse_BF, rows.first_F, rows.size_F, rows.weight_VE, dense_BC)
    assert beyond is None
    expected_BW = torch.cat([own(sparse_BF), dense_BC], dim=1).bfloat16()
    torch.testing.assert_close(out_BW, expected_BW, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("wrong", [-1, 7])
def test_the_first_id_beyond_its_table_is_named(kernels, wrong):
    own, (sparse_BF, dense_BC) = tables(), batch()
    sparse_BF[200, 0], sparse_BF[11, 1] = -5, wrong
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=f"brand has the id {wrong}; its table takes 0 to 6"),
    ):
        own.beside(sparse_BF, dense_BC)


def test_an_id_too_large_for_32_bits_is_not_cut_to_one_that_exists(kernels):
    own, (sparse_BF, dense_BC) = tables(), batch()
    sparse_BF = sparse_BF.long()
    sparse_BF[3, 1] = 2**32 + 2
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=f"brand has the id {2**32 + 2}"),
    ):
        own.beside(sparse_BF, dense_BC)


@pytest.mark.parametrize("rows", [1, 64, ROWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_learn_what_fbgemm_teaches_them(kernels, monkeypatch, dtype, rows):
    sparse_BF, _ = batch(rows=rows)
    grad_BW = torch.randn(rows, len(SIZES) * WIDTH).to(dtype)
    mine = learned(sparse_BF, grad_BW, compiled=True, monkeypatch=monkeypatch)
    theirs = learned(sparse_BF, grad_BW.float(), compiled=False, monkeypatch=monkeypatch)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=2e-6, atol=1e-7)


def test_one_row_by_hand(kernels):
    weight_VE, sum_V = torch.ones(3, 2), torch.tensor([5.0, 2.0, 5.0])
    grad_BW = torch.tensor([[1.0, 2.0], [2.0, 2.0]])
    kernels.learn_(
        torch.tensor([[1], [1]], dtype=torch.int32), torch.tensor([0]), grad_BW,
        weight_VE, sum_V, learning_rate=0.5, epsilon=0.0,
    )  # fmt: skip
    # The row is named twice and moved once, by (3, 4): 2 + (9 + 16) / 2 = 14.5.
    by = 0.5 / 14.5**0.5
    torch.testing.assert_close(sum_V, torch.tensor([5.0, 14.5, 5.0]))
    expected_VE = torch.tensor([[1.0, 1.0], [1 - 3 * by, 1 - 4 * by], [1.0, 1.0]])
    torch.testing.assert_close(weight_VE, expected_VE)


def test_ids_that_share_a_place_in_the_hash_stay_apart(kernels):
    # Every id of a batch its own, in steps that leave a simple hash few places.
    rows, step = 512, 1 << 12
    weight_VE, sum_V = torch.zeros(rows * step, 4), torch.zeros(rows * step)
    sparse_BF = (torch.arange(rows, dtype=torch.int32) * step)[:, None].contiguous()
    grad_BW = (1.0 + torch.arange(rows))[:, None].repeat(1, 4)
    kernels.learn_(
        sparse_BF, torch.tensor([0]), grad_BW, weight_VE, sum_V,
        learning_rate=1.0, epsilon=EPSILON,
    )  # fmt: skip
    torch.testing.assert_close(sum_V[::step], grad_BW[:, 0] ** 2)
    assert (sum_V > 0).sum() == rows
    torch.testing.assert_close(weight_VE[::step], torch.full((rows, 4), -1.0))


def test_columns_beside_the_rows_teach_them_nothing(kernels, monkeypatch):
    sparse_BF, dense_BC = batch()
    own, plain = tables(), tables()
    upstream_BW = torch.randn(ROWS, len(SIZES) * WIDTH + 2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        joined_BW = own.beside(sparse_BF, dense_BC)
        monkeypatch.setattr(fused_tables, "step_kernels", lambda: None)
        apart_BW = side_by_side(plain(sparse_BF), dense_BC)
    assert torch.equal(joined_BW, apart_BW)
    apart_BW.backward(upstream_BW)
    monkeypatch.undo()
    joined_BW.backward(upstream_BW)
    assert (plain._rows.sum_V > 0).any()
    torch.testing.assert_close(own._rows.sum_V, plain._rows.sum_V, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(own._rows.weight_VE, plain._rows.weight_VE, rtol=2e-6, atol=1e-7)


def test_frozen_tables_do_not_learn_and_the_others_do(kernels):
    own, (sparse_BF, dense_BC) = tables(), batch()
    own.freeze(1_000)
    with torch.autocast("cpu", torch.bfloat16):
        own.beside(sparse_BF, dense_BC).sum().backward()
    user_V, brand_V, query_V = own.accumulators()
    assert (user_V > 0).any() and (brand_V > 0).any() and (query_V == 0).all()


@pytest.mark.parametrize("width", [1, 31, 32, 45])
def test_logits_and_their_gradients_are_those_of_float64(kernels, width):
    seen_BW, weight_W, up_B = (
        torch.randn(ROWS, width).bfloat16(), torch.randn(width), torch.randn(ROWS)
    )  # fmt: skip
    exact_B = seen_BW.double() @ weight_W.double()
    torch.testing.assert_close(
        kernels.logits(seen_BW, weight_W).double(), exact_B, rtol=1e-5, atol=1e-5
    )
    d_seen_BW, d_weight_W = kernels.logit_gradients(seen_BW, weight_W, up_B)
    assert torch.equal(d_seen_BW, (up_B[:, None] * weight_W).bfloat16())
    exact_W = seen_BW.double().t() @ up_B.double()
    torch.testing.assert_close(d_weight_W.double(), exact_W, rtol=1e-5, atol=1e-4)


def test_the_number_of_threads_changes_no_bit(kernels, monkeypatch):
    sparse_BF, _ = batch()
    grad_BW = torch.randn(ROWS, len(SIZES) * WIDTH).bfloat16()
    seen_BW, weight_W, up_B = torch.randn(ROWS, 45).bfloat16(), torch.randn(45), torch.randn(ROWS)

    def on(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return [
                *learned(sparse_BF, grad_BW, compiled=True, monkeypatch=monkeypatch),
                kernels.logits(seen_BW, weight_W),
                *kernels.logit_gradients(seen_BW, weight_W, up_B),
            ]
        finally:
            torch.set_num_threads(before)

    for one, three in zip(on(1), on(3), strict=True):
        assert torch.equal(one, three)


def test_no_rows_are_no_work(kernels):
    none_BF = torch.empty(0, 1, dtype=torch.int32)
    first_F, weight_VE, sum_V = torch.tensor([0]), torch.ones(2, 4), torch.zeros(2)
    out_BW, beyond = kernels.look_up(
        none_BF, first_F, torch.tensor([2]), weight_VE, torch.empty(0, 3)
    )
    assert out_BW.shape == (0, 7) and beyond is None
    kernels.learn_(
        none_BF, first_F, torch.empty(0, 4), weight_VE, sum_V, learning_rate=1.0, epsilon=0.0
    )
    assert (weight_VE == 1).all()
    seen_BW, weight_W = torch.empty(0, 3).bfloat16(), torch.ones(3)
    assert kernels.logits(seen_BW, weight_W).shape == (0,)
    _, d_weight_W = kernels.logit_gradients(seen_BW, weight_W, torch.empty(0))
    assert (d_weight_W == 0).all()


def test_a_second_look_compiles_nothing(kernels, tmp_path, monkeypatch):
    library = step_kernels.compiled(tmp_path)
    written = library.stat().st_mtime_ns
    assert [path.name for path in tmp_path.iterdir()] == [library.name]
    monkeypatch.setattr(step_kernels.subprocess, "run", lambda *_, **__: pytest.fail("compiled"))
    assert step_kernels.compiled(tmp_path) == library
    assert library.stat().st_mtime_ns == written


def test_another_source_is_compiled_anew(kernels, tmp_path, monkeypatch):
    first = step_kernels.compiled(tmp_path)
    changed = tmp_path / "step_kernels.c"
    changed.write_bytes(step_kernels.SOURCE.read_bytes() + b"\n/* another */\n")
    monkeypatch.setattr(step_kernels, "SOURCE", changed)
    assert step_kernels.compiled(tmp_path) != first


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("/nowhere/cc", "there is no C compiler '/nowhere/cc'"),
        ("false", "could not compile"),
        ("gcc 'x", "is no command: No closing quotation"),
    ],
)
def test_without_a_compiler_training_goes_on_and_says_so(
    uncached, tmp_path, caplog, compiler, said
):
    uncached.setenv("CC", compiler)
    uncached.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert step_kernels.step_kernels() is None
    (record,) = caplog.records
    assert said in record.getMessage()
    own, (sparse_BF, dense_BC) = tables(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        own.beside(sparse_BF, dense_BC).sum().backward()
    assert (own._rows.sum_V > 0).any()


@pytest.mark.parametrize(
    ("then", "said"), [("exit 1", "could not compile"), ("sleep 60", "took more than 1 s")]
)
def test_a_compiler_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch, then, said):
    compiler = tmp_path / "half-cc"
    compiler.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho half > "$2"\nexec {then}\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(step_kernels, "COMPILE_SECONDS", 1)
    with pytest.raises(OSError, match=said):
        step_kernels.compiled(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_said(uncached, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    uncached.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert step_kernels.step_kernels() is None
    assert len(caplog.records) == 1


def test_kernels_are_left_alone_where_they_are_switched_off(uncached, caplog):
    uncached.setenv("ADTOWER_KERNELS", "off")
    uncached.setattr(step_kernels, "compiled", lambda: pytest.fail("compiled"))
    assert step_kernels.step_kernels() is None
    assert not caplog.records


def test_a_switch_that_is_none_is_refused(uncached):
    uncached.setenv("ADTOWER_KERNELS", "no")
    with pytest.raises(ValueError, match="ADTOWER_KERNELS='no' is not 'off' or unset"):
        step_kernels.step_kernels()


def test_two_processes_that_compile_at_once_leave_one_library(kernels, tmp_path):
    code = "from ranking.step_kernels import step_kernels as s; assert s() is not None"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) for _ in range(2)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert [path.suffix for path in (tmp_path / "adtower").iterdir()] == [".so"]
