"""Id tables in one byte a value, and the gate that a model with such tables must pass.

Shape letters: V table rows, E width of an id embedding, N impressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ranking.fused_tables import FusedTables
from ranking.metrics import auc, calibration_ratio
from ranking.network import network_to_fill
from ranking.tower import TowerRanker

MAX_AUC_LOSS = 0.0005
"""int8 is refused if the AUC falls by more; a tenth of what a good feature gains."""

MAX_CALIBRATION_CHANGE = 0.005
"""int8 is refused if mean prediction over click rate moves by more than this share."""


@dataclass(frozen=True, kw_only=True)
class ByteTable:
    """A table as int8, each row with a scale of its own."""

    byte_VE: NDArray[np.int8]
    scale_V1: NDArray[np.float32]

    @classmethod
    def of(cls, table_VE: NDArray[np.floating]) -> ByteTable:
        """Round a table: the largest absolute value of each row becomes 127."""
        largest_V1 = np.abs(table_VE).max(axis=1, keepdims=True)
        scale_V1 = np.where(largest_V1 > 0, largest_V1 / 127, 1).astype(np.float32)
        byte_VE = np.rint(table_VE / scale_V1).astype(np.int8)
        return cls(byte_VE=byte_VE, scale_V1=scale_V1)

    def values(self) -> NDArray[np.float32]:
        """Return what the bytes stand for, shape (V, E)."""
        return self.byte_VE.astype(np.float32) * self.scale_V1


@dataclass(frozen=True, kw_only=True)
class Int8Gate:
    """What rounding cost on labelled impressions."""

    auc: float
    """With the tables as trained."""
    auc_int8: float
    calibration_ratio: float
    """Mean prediction over click rate, with the tables as trained."""
    calibration_ratio_int8: float
    rows: int

    @classmethod
    def measure(
        cls, label_N: NDArray, p_N: NDArray[np.float64], p_int8_N: NDArray[np.float64]
    ) -> Int8Gate:
        """Compare the two models' probabilities of N labelled impressions."""
        return cls(
            auc=auc(label_N, p_N),
            auc_int8=auc(label_N, p_int8_N),
            calibration_ratio=calibration_ratio(label_N, p_N),
            calibration_ratio_int8=calibration_ratio(label_N, p_int8_N),
            rows=len(label_N),
        )

    def check(self) -> None:
        """Refuse a model that rounding has hurt.

        Raises:
            ValueError: If AUC or calibration lie beyond their tolerance; the message says all four
                numbers.
        """
        change = abs(self.calibration_ratio_int8 / self.calibration_ratio - 1)
        if self.auc - self.auc_int8 <= MAX_AUC_LOSS and change <= MAX_CALIBRATION_CHANGE:
            return
        raise ValueError(
            f"int8 tables cost too much on {self.rows} labelled impressions: AUC {self.auc:.5f} "
            f"becomes {self.auc_int8:.5f} (may lose {MAX_AUC_LOSS:g}), mean prediction over click "
            f"rate {self.calibration_ratio:.4f} becomes {self.calibration_ratio_int8:.4f} (may "
            f"change by {MAX_CALIBRATION_CHANGE:.1%}); export without --int8-tables"
        )


def with_rounded_tables(model: TowerRanker) -> TowerRanker:
    """Return a copy whose id tables hold what their int8 form stands for.

    Raises:
        ValueError: If the model has no id tables.
    """
    if not model.signature_.sparse_names:
        raise ValueError("int8 tables were asked for, but the model has no sparse features")
    rounded = TowerRanker(model.config)
    rounded.signature_, rounded.checks_ = model.signature_, model.checks_
    rounded.precision_, rounded.codebook_ = model.precision_, model.codebook_
    rounded.history_rows_ = model.history_rows_
    network = network_to_fill(model.config, model.signature_, model.history_rows_)
    network.load_state_dict(model.network_.state_dict())
    tables = network.production.tables
    assert isinstance(tables, FusedTables)
    with torch.no_grad():
        for weight_VE in tables.weights():
            weight_VE.copy_(torch.from_numpy(ByteTable.of(weight_VE.numpy()).values()))
    rounded.network_ = network.eval()
    return rounded
