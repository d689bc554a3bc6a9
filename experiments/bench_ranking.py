"""Training speed and test AUC of DCN-v2: adtower, FuxiCTR and DeepCTR-Torch on the same clicks.

Every system runs in a process of its own, one after the other, on the same files, with the same
threads. "Fit" is the library's own call of fit; the whole process counts from its start to its
end, imports, reading and scoring of the test rows included.

A peer takes minutes and adtower a fraction of one, on machines whose speed changes from minute to
minute. So adtower runs before, between and after the peers, and its mean time counts.

Run as a script, this file is adtower's own process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments import bench_ranking_peers
from experiments.bench_ranking_data import TABLE_ROWS, read_examples, write_clicks_
from experiments.idle_threads import as_the_user_had, others_run, settle_waiting_
from experiments.peer_environment import peer_python
from experiments.progress import Progress, Silent
from features.peak_memory import peak_bytes
from ranking.intervals import auc_components, auc_difference
from ranking.metrics import auc
from ranking.step_kernels import step_kernels
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig
from ranking.train_config import use_bf16

BATCH, EPOCHS, LR = 4096, 1, 1e-3
TEST_SHARE = 0.1
VALIDATION_ROWS = 4096

OWN = ("same_network", "default_network")

PEERS = {
    "fuxictr": ("fuxictr==2.3.10", "h5py==3.16.0"),
    "deepctr": ("deepctr-torch==0.3.0",),
}
"""What each peer's environment installs; the rest comes from the running one."""

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Ran:
    """One system's figures."""

    fit_seconds: float
    whole_seconds: float
    peak_memory_gb: float
    score_N: NDArray[np.float64]
    """Of the test rows."""
    auc: float
    share_of_peak: float | None = None

    def to_metrics(self, name: str, rows: int) -> Metrics:
        return {
            f"{name}.rows_per_second": rows / self.fit_seconds,
            f"{name}.whole_process_rows_per_second": rows / self.whole_seconds,
            f"{name}.peak_memory_gb": self.peak_memory_gb,
            f"{name}.auc": self.auc,
        }


def bench_ranking(
    rows: int,
    *,
    peers: Sequence[str] = tuple(PEERS),
    progress: Progress | None = None,
) -> Metrics:
    """Train the same DCN-v2 in each library for one epoch; in adtower also its own default.

    The same network has the same batch and learning rate everywhere; the default network is
    ``TowerConfig``'s, learning rate included, with the batch of the others.

    Args:
        rows: Training rows; a tenth as many more are for the test.
        peers: Which other libraries; those that cannot be installed are said and left out.
        progress: Told of the stages.

    Returns:
        For each system ``NAME.rows_per_second``, ``NAME.whole_process_rows_per_second``,
        ``NAME.peak_memory_gb`` and ``NAME.auc``, where NAME is same_network, default_network or a
        peer; ``peak_share``, the share of the matrix-product peak measured just before and after
        each fit that the same network's fits reach on average; ``compiled_kernels``, 1 where
        adtower's were there and 0 where torch and fbgemm stood in; and against the peer of the
        faster fit ``speedup.NAME`` and ``delta_auc.NAME``, with ``.low`` and ``.high`` the ends of
        its 95% interval over the test rows (DeLong, paired; what another seed would give is not in
        it).

    Raises:
        ValueError: If a batch is not filled, or a process fails.
    """
    if rows < BATCH:
        raise ValueError(f"rows is {rows}; at least one batch of {BATCH} is needed")
    progress = progress or Silent()
    metrics: Metrics = {"rows": float(rows)}
    ran: dict[str, _Ran] = {}
    with tempfile.TemporaryDirectory(prefix="adtower-bench-") as scratch:
        data = Path(scratch)
        with progress.stage(f"clicks: {rows} rows"):
            write_clicks_(data, train=rows, test=max(1000, round(TEST_SHARE * rows)))
            (data / "sizes.json").write_text(json.dumps([TABLE_ROWS] * 26))
        label_N = np.load(data / "label.npy")[rows:]
        times: dict[str, list[_Ran]] = {name: [] for name in OWN}

        def run_own_() -> None:
            for name in OWN:
                with progress.stage(name):
                    own = [sys.executable, "-m", "experiments.bench_ranking", name]
                    times[name].append(_run(own, name, data, rows, label_N))

        run_own_()
        for name in peers:
            with progress.stage(name) as report:
                try:
                    python = peer_python(name, PEERS[name])
                except ValueError as error:
                    report(0, 1, f"left out: {error}")
                    print(f"{name} is left out: {error}", file=sys.stderr)
                    continue
                script = bench_ranking_peers.__file__
                ran[name] = _run([str(python), script, name], name, data, rows, label_N)
            run_own_()
    ran = {name: _mean(each) for name, each in times.items()} | ran
    for name, one in ran.items():
        metrics |= one.to_metrics(name, rows)
    same = ran["same_network"].share_of_peak
    assert same is not None
    metrics["peak_share"] = same
    metrics["compiled_kernels"] = float(step_kernels() is not None)
    return metrics | _against_faster_peer(ran, label_N)


def _mean(times: Sequence[_Ran]) -> _Ran:
    """The mean times of one system's runs, which give the same scores, and the most memory."""
    shares = [one.share_of_peak for one in times if one.share_of_peak is not None]
    return _Ran(
        fit_seconds=float(np.mean([one.fit_seconds for one in times])),
        whole_seconds=float(np.mean([one.whole_seconds for one in times])),
        peak_memory_gb=max(one.peak_memory_gb for one in times),
        score_N=times[0].score_N,
        auc=times[0].auc,
        share_of_peak=float(np.mean(shares)) if shares else None,
    )


def _against_faster_peer(ran: dict[str, _Ran], label_N: np.ndarray) -> Metrics:
    others = [one for name, one in ran.items() if name in PEERS]
    if not others:
        return {}
    faster = min(others, key=lambda one: one.fit_seconds)
    theirs = auc_components(label_N, [faster.score_N])
    metrics: Metrics = {}
    for name in OWN:
        metrics[f"speedup.{name}"] = faster.fit_seconds / ran[name].fit_seconds
        difference = auc_difference(label_N, auc_components(label_N, [ran[name].score_N]), theirs)
        metrics[f"delta_auc.{name}"] = difference.value
        low, high = difference.interval()
        metrics |= {f"delta_auc.{name}.low": low, f"delta_auc.{name}.high": high}
    return metrics


def _run(command: Sequence[str], name: str, data: Path, rows: int, label_N: np.ndarray) -> _Ran:
    given = [str(data), str(rows), str(BATCH), str(EPOCHS), str(LR)]
    # How threads wait is settled for each process: peers are run as their users would.
    environment = as_the_user_had(os.environ)
    if name in OWN:
        settle_waiting_(environment, others_run(patience_s=1.0))
    began = time.perf_counter()
    done = subprocess.run(
        [*command, *given], capture_output=True, text=True, check=False, env=environment
    )
    whole = time.perf_counter() - began
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise ValueError(f"{name} ended with status {done.returncode}: {last}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    score_N = np.load(data / f"{name}.scores.npy")
    return _Ran(
        fit_seconds=found["fit_seconds"],
        whole_seconds=whole,
        peak_memory_gb=found["peak_memory_gb"],
        share_of_peak=found.get("share_of_peak"),
        score_N=score_N,
        auc=auc(label_N, score_N),
    )


def _own(name: str, data: Path, rows: int, batch: int, epochs: int, lr: float) -> None:
    """Fit adtower's network in this process and print what it took."""
    settings = {
        "use_vectors": False,
        "batch_size": batch,
        "max_epochs": epochs,
        "checks_per_epoch": 1,
    }
    if name == "same_network":
        settings |= {
            "lr": lr,
            "embedding_dim": bench_ranking_peers.WIDTH,
            "cross_layers": bench_ranking_peers.CROSSES,
            "cross_rank": None,
            "production_mlp": bench_ranking_peers.MLP,
            "head": (),
            "dropout": 0.0,
        }
    config = TowerConfig.model_validate(settings)
    train, test = read_examples(data, slice(0, rows)), read_examples(data, slice(rows, None))
    # One of adtower's checks reads validation rows; the peers have none or few.
    validation = train.take(slice(0, VALIDATION_ROWS))
    model = TowerRanker(config)
    bf16 = use_bf16(config.bf16)
    peaks = [matrix_peak(bf16=bf16)]
    began = time.perf_counter()
    model.fit(train, validation, None, seed=0)
    seconds = time.perf_counter() - began
    peaks.append(matrix_peak(bf16=bf16))
    np.save(data / f"{name}.scores.npy", model.predict_proba(test, None))
    weights = sum(
        layer.weight.numel()
        for layer in model.network_.modules()
        if isinstance(layer, torch.nn.Linear)
    )
    # Each weight multiplies and adds once forward and twice backward.
    reached = 6 * weights * rows * epochs / seconds
    print(
        json.dumps(
            {
                "fit_seconds": seconds,
                "peak_memory_gb": peak_bytes() / 1e9,
                "share_of_peak": reached / float(np.mean(peaks)),
            }
        )
    )


def matrix_peak(*, bf16: bool, size: int = 2048, repeats: int = 10) -> float:
    """Measure the best rate of matrix products in this precision, in operations a second."""
    a_SS = torch.randn(size, size, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a_SS, a_SS)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    own_name, folder, rows, batch, epochs, lr = sys.argv[1:]
    _own(own_name, Path(folder), int(rows), int(batch), int(epochs), float(lr))
