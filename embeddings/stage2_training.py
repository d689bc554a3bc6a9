"""The training loop of stage 2: batches, updates, mined negatives, and a state to go on from.

Shape letters: P products, M of them drawn, B queries of a batch, Q trainable queries, K negatives
mined for each, E embedding size.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from embeddings import training_state
from embeddings.alignment_sides import ProductSide, Queries
from embeddings.hard_negatives import draw_mined, mine_hard_negatives
from embeddings.judgements import Judgements
from embeddings.memory_bank import ProductBank
from embeddings.model import DashClip
from embeddings.momentum import AverageWeights
from embeddings.pqc import graded_pair_loss, pqc_loss
from embeddings.schedule import (
    Batches,
    adamw,
    generator_at,
    learning_rate_factor,
    take_step_,
)
from embeddings.stage1_config import MAX_TEMPERATURE, MIN_TEMPERATURE
from embeddings.stages import Progress

if TYPE_CHECKING:
    from embeddings.stage2_config import Stage2Config

STATE_SECONDS = 60.0
"""Time from one training state on disk to the next: what a kill costs at most."""

MINED_PER_DRAWN = 4
"""Negatives mined for each one drawn at a step, so that steps differ."""


class AlignmentTraining:
    """One run of stage 2 over a model, which it changes in place."""

    def __init__(
        self,
        config: Stage2Config,
        model: DashClip,
        products: ProductSide,
        queries: Queries,
        judgements: Judgements,
        group_P: NDArray[np.int64],
        seed: int,
    ) -> None:
        self.config, self.model, self.seed = config, model, seed
        self.products, self.queries, self.judgements = products, queries, judgements
        self.group_P = group_P
        self.trainable_Q = judgements.trainable
        self.order = Batches(len(self.trainable_Q), config.batch, seed)
        self.bank = ProductBank(config.bank, model.dim).to(model.device)
        self.mined_QK: NDArray[np.int64] | None = None
        self.temperature = nn.Parameter(torch.tensor(config.temperature, device=model.device))
        groups = self._groups()
        kept = {id(parameter) for parameters, _ in groups for parameter in parameters}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in kept)
        self.optimizer = adamw(groups, config.weight_decay)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average = None
        if config.ema_decay is not None:
            # Over a third of the steps at most, or a short training averages over its beginning.
            decay = min(config.ema_decay, max(0.0, 1 - 3 / config.steps))
            self.average = AverageWeights(trained, decay)
        self.history: dict[str, list[float]] = {}
        self.step = 0

    def run(
        self,
        identity: dict[str, Any],
        arithmetic: dict[str, Any],
        state: Path | None,
        progress: Progress | None,
    ) -> dict[str, list[float]]:
        """Train to the end, from where ``restore`` put the run or from the beginning.

        Args:
            identity: What a training state is written for.
            arithmetic: What the run computes in, kept in the state.
            state: Folder of the training state; None keeps none.
            progress: Called after every step.

        Returns:
            The value of each metric at each step.
        """
        saved = time.monotonic()
        while self.step < self.config.steps:
            metrics = self._advance()
            for name, value in metrics.items():
                self.history.setdefault(name, []).append(value)
            if progress is not None:
                progress("stage2", self.step, self.config.steps, metrics)
            due = time.monotonic() - saved > STATE_SECONDS and self.step < self.config.steps
            if state is not None and due:
                self._write_state(state, identity, arithmetic)
                saved = time.monotonic()
        if self.average is not None:
            self.average.put_in_()
        self.model.requires_grad_(requires_grad=True)
        return self.history

    def _groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """What trains, with its peak learning rate."""
        config, model = self.config, self.model
        projection, query = model.product_projection, model.query_encoder
        assert projection is not None and query is not None
        heads = [*projection.parameters(), *query.projection.parameters()]
        groups = [
            (heads, config.learning_rate),
            (list(query.layers.parameters()), config.query_learning_rate),
            ([self.temperature], config.learning_rate),
        ]
        if config.end_to_end:
            encoders = [*model.text.parameters(), *model.multimodal.parameters()]
            groups.append((encoders, config.text_learning_rate))
        return groups

    def _advance(self) -> dict[str, float]:
        """One step: draw, contrast, update."""
        config, step = self.config, self.step
        if config.hard_negatives and step % config.mine_every == 0:
            self.mined_QK = self._mine()
        place_B = self.order.next().numpy()
        query_B = self.trainable_Q[place_B]
        product_M = self.judgements.draw(query_B, config.class_ratio, self.order.epoch)
        if self.mined_QK is not None:
            draw = generator_at(self.seed, "mined", step)
            mined = draw_mined(self.mined_QK[place_B], config.hard_negatives, draw)
            product_M = np.union1d(product_M, mined)
        hidden = generator_at(self.seed, "hidden", step)
        query_BE = self.queries.vectors(torch.from_numpy(query_B), hidden)
        product_ME = self.products.vectors(torch.from_numpy(product_M), hidden)
        pqc, graded = self._losses(query_B, product_M, query_BE, product_ME)
        loss = take_step_(
            self.optimizer,
            config.contrast_weight * pqc + config.graded_weight * graded,
            factor=learning_rate_factor(step, config.steps, config.warmup_steps),
            max_norm=config.max_gradient_norm,
            where=f"stage 2, step {step + 1}",
        )
        with torch.no_grad():
            self.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        self.bank.push_(product_ME.detach(), torch.from_numpy(product_M))
        self.step += 1
        if self.average is not None:
            self.average.take_in_(self.step)
        return {
            "loss": loss,
            "pqc": float(pqc.detach()),
            "graded": float(graded.detach()),
            "temperature": float(self.temperature.detach()),
        }

    def _losses(
        self,
        query_B: NDArray[np.int64],
        product_M: NDArray[np.int64],
        query_BE: Tensor,
        product_ME: Tensor,
    ) -> tuple[Tensor, Tensor]:
        config, device = self.config, self.model.device
        targets = self.judgements.targets(query_B, product_M, device)
        bank_KE = bank_targets = None
        if len(self.bank):
            bank_KE, bank_row_K = self.bank.keys()
            rows = bank_row_K.cpu().numpy()
            bank_targets = self.judgements.targets(query_B, rows, device)
        pqc = pqc_loss(
            query_BE,
            product_ME,
            targets,
            temperature=self.temperature,
            bank_QD=bank_KE,
            bank_targets=bank_targets,
        )
        judged_BM = targets.weight_BM > 0
        cosine_BM = F.normalize(query_BE, dim=1) @ F.normalize(product_ME, dim=1).T
        graded = graded_pair_loss(
            cosine_BM[judged_BM],
            targets.chance_BM3[judged_BM],
            targets.weight_BM[judged_BM],
            temperature=config.graded_temperature,
        )
        return pqc, graded

    def _mine(self) -> NDArray[np.int64]:
        """Hard negatives of every trainable query, by the vectors of the moment."""
        rows = torch.from_numpy(self.trainable_Q)
        return mine_hard_negatives(
            self.queries.all_vectors()[rows.to(self.model.device)],
            self.products.all_vectors(),
            self.trainable_Q,
            self.judgements,
            self.group_P,
            count=MINED_PER_DRAWN * self.config.hard_negatives,
            near_duplicate=self.config.near_duplicate,
        )

    def _write_state(
        self, folder: Path, identity: dict[str, Any], arithmetic: dict[str, Any]
    ) -> None:
        names = training_state.trained_names(self.model)
        tensors = training_state.take("model", self.model, names)
        tensors |= training_state.take("bank", self.bank, self.bank.state_dict())
        tensors |= training_state.optimizer_tensors(self.optimizer)
        tensors["temperature"] = self.temperature.detach()
        if self.average is not None:
            tensors |= self.average.tensors()
        if self.mined_QK is not None:
            tensors["mined"] = torch.from_numpy(self.mined_QK)
        record = {
            "identity": identity,
            "step": self.step,
            "place": (self.order.epoch, self.order.position),
            "history": self.history,
            "arithmetic": arithmetic,
        }
        training_state.write_state_(folder, tensors, record)

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Go on from a state that ``run`` wrote.

        Raises:
            ValueError: If it lacks a tensor, or one has another shape.
        """
        names = training_state.trained_names(self.model)
        training_state.put_back_("model", self.model, names, tensors)
        training_state.put_back_("bank", self.bank, self.bank.state_dict(), tensors)
        training_state.restore_optimizer_(self.optimizer, tensors)
        with torch.no_grad():
            self.temperature.copy_(tensors["temperature"])
        if self.average is not None:
            self.average.restore_(tensors)
        if "mined" in tensors:
            self.mined_QK = tensors["mined"].numpy()
        self.step, self.history = record["step"], record["history"]
        self.order.epoch, self.order.position = record["place"]
