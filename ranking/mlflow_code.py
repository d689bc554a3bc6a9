"""The model that MLflow runs: code and a bundle, nothing pickled.

MLflow executes this file when it loads a model that ``ranking.mlflow_model`` wrote, and imports
the packages that were copied beside it.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
import polars as pl

from features.columns import as_frame
from ranking.score import Scorer


class BundleModel(mlflow.pyfunc.PythonModel):
    """Scores impressions with the bundle among the model's artifacts."""

    _scorer: Scorer

    def load_context(self, context: Any) -> None:
        """Verify the bundle and load it."""
        self._scorer = Scorer.load(context.artifacts["bundle"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return ``p_click`` of every row of impressions, raw as they were logged.

        Raises:
            ValueError: If a column is missing or holds what it may not.
        """
        frame = as_frame(model_input)
        nullable = [name for name in ("user_id", "query_id") if name not in frame.columns]
        frame = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in nullable)
        return pd.DataFrame({"p_click": self._scorer.score(frame)})


mlflow.models.set_model(BundleModel())
