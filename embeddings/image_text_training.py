"""The training loop of stage 1: batches, updates, momentum, alarms, and a state to go on from.

Shape letters: N products that train, G rows of a global batch, K draws of a view, L tokens, V
different texts, T width of a text's vector.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from embeddings import training_state
from embeddings.arithmetic import settle_arithmetic_
from embeddings.cached_text import CachedStates
from embeddings.collapse import CHECK_EVERY, Alarm
from embeddings.image_text_batches import Batch, BatchDraws, TrainingData
from embeddings.image_text_step import ImageTextStep, Outcome
from embeddings.lora import merge_lora_
from embeddings.losses import sigmoid_bias
from embeddings.model import EMBED_BATCH, DashClip
from embeddings.momentum import follow_, momentum_copy
from embeddings.pictures import CachedPictures, PixelPictures
from embeddings.queue import KeyQueue
from embeddings.ranks import Ranks
from embeddings.schedule import (
    adamw,
    generator_at,
    learning_rate_factor,
    refuse_nan,
    update_,
)
from embeddings.stage1_config import MAX_TEMPERATURE, MIN_TEMPERATURE
from embeddings.stages import Progress
from embeddings.text import tokenize

if TYPE_CHECKING:
    from embeddings.stage1_config import Stage1Config

STATE_SECONDS = 60.0
"""Time from one training state on disk to the next: what a kill costs at most."""


class ImageTextTraining:
    """One run of stage 1 over a model, which it changes in place."""

    def __init__(
        self, config: Stage1Config, model: DashClip, data: TrainingData, seed: int, ranks: Ranks
    ) -> None:
        self.config, self.model, self.data, self.seed, self.ranks = config, model, data, seed, ranks
        self.draws = BatchDraws(config, data, seed)
        ranks.own(self.draws.order.batch)
        self.history: dict[str, list[float]] = {}
        self.arithmetic: dict[str, Any] = {}
        """Threads, precision and why; recorded with the model."""
        self.alarm = Alarm()
        self.step = 0

    def run(
        self, identity: dict[str, Any], state: Path | None, progress: Progress | None
    ) -> dict[str, list[float]]:
        """Train to the end, from the state on disk if there is one.

        Args:
            identity: What the state must have been written for.
            state: Folder of the training state; None keeps none.
            progress: Called after every step.

        Returns:
            The value of each metric at each step.
        """
        found = None if state is None else training_state.read_state_of(state, identity)
        recorded = None if found is None else found[1]["arithmetic"]
        self.arithmetic = settle_arithmetic_(self.model, recorded)
        self._prepare()
        if found is not None:
            self._restore(*found)
        saved = time.monotonic()
        seen, began = 0, saved
        coming = self.draws.draw()
        while self.step < self.config.steps:
            batch, place = coming
            coming = self.draws.draw()
            self.work.pictures.expect(coming[0].row_G[self.ranks.own(len(batch.row_G))])
            metrics = self._advance(batch, place)
            seen += len(batch.row_G)
            if progress is not None:
                rate = seen / max(time.monotonic() - began, 1e-9)
                told = {**metrics, "images_per_s": rate}
                progress("stage1", self.step, self.config.steps, told)
            due = time.monotonic() - saved > STATE_SECONDS and self.step < self.config.steps
            if state is not None and due and self.ranks.rank == 0:
                self._write_state(state, identity, coming[1])
                saved = time.monotonic()
        self._finish()
        return self.history

    def _prepare(self) -> None:
        """Build what the steps need, from the model as it is before the first of them."""
        config, model, data = self.config, self.model, self.data
        shape = model.architecture
        different, text_of_N = np.unique(np.array(data.texts), return_inverse=True)
        tokens = tokenize(model.tokenizer, different.tolist(), config.max_text_tokens)
        if shape.frozen_image_layers:
            pictures = CachedPictures(model, data.pixel_NSS3)
        else:
            pictures = PixelPictures(data.pixel_NSS3, config.views, model.device)
            pictures.pixels = config.image_px
        states = CachedStates(model, tokens, shape.fusion_start)
        frozen = shape.frozen_text_layers == len(model.text.layers)
        bias = None
        if config.objective == "sigmoid":
            start = torch.tensor(sigmoid_bias(self.draws.order.batch), device=model.device)
            bias = nn.Parameter(start)
        if config.lora_rank:
            generator = generator_at(self.seed, "adapters", 0)
            model.add_lora_(config.lora_rank, float(config.lora_rank), generator)
        pretrained, new = model.trained_parameters()
        self.replicated = [model.temperature] + ([bias] if bias is not None else [])
        trained = [*pretrained, *new, *self.replicated]
        kept = {id(parameter) for parameter in trained}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in kept)
        pooled_VT = pooled_texts(model, states) if frozen else None
        if pooled_VT is not None and not model.origins.projections.pretrained:
            centre_text_(model, pooled_VT)
        follows = config.objective == "momentum" or config.final_weights == "momentum"
        follower = momentum_copy(model) if follows else None
        if config.compile:
            for layer in (*model.text.layers, *model.image.layers):
                layer.compile()
        self.trained = trained
        self.optimizer = adamw(
            [
                (pretrained, config.text_learning_rate),
                ([*new, *self.replicated], config.learning_rate),
            ],
            config.weight_decay,
        )
        self.work = ImageTextStep(
            model=model,
            follower=follower,
            queue=(
                KeyQueue(config.queue, model.dim).to(model.device)
                if config.objective == "momentum"
                else None
            ),
            pictures=pictures,
            states=states,
            text_of_N=torch.from_numpy(text_of_N),
            ranks=self.ranks,
            objective=config.objective,
            bias=bias,
            hidden_share=config.hidden_share,
            itm_rows=config.itm_rows,
            itm_temperature=config.itm_temperature,
            group_V=self._text_groups(text_of_N) if config.objective == "all_texts" else None,
            smoothing=config.smoothing,
            pooled_VT=pooled_VT,
            part_rows=config.part_rows,
        )

    def _text_groups(self, text_of_N: NDArray[np.int64]) -> Tensor:
        """The product group of each different text, equal texts being one; -1 of no text."""
        group_V = torch.zeros(int(text_of_N.max()) + 1, dtype=torch.int64)
        place_N = torch.from_numpy(text_of_N)
        group_V[place_N] = self.data.group_N
        group_V[place_N[torch.tensor([not text for text in self.data.texts])]] = -1
        return group_V

    def _advance(self, batch: Batch, place: tuple[int, int]) -> dict[str, float]:
        """One step: gradients, update, momentum, metrics."""
        config, step = self.config, self.step
        ids = [self.data.ids[row] for row in batch.row_G[:3].tolist()]
        where = (
            f"stage 1, step {step + 1}, batch {place[1] + 1} of epoch {place[0] + 1} (products "
            f"{', '.join(ids)}, ...)"
        )
        ramp = 1.0 if not config.soft_ramp_steps else min(1.0, step / config.soft_ramp_steps)
        check = step % CHECK_EVERY == 0
        if isinstance(self.work.pictures, PixelPictures):
            small = step < config.small_share * config.steps
            self.work.pictures.pixels = config.small_px if small else config.image_px
        self.optimizer.zero_grad(set_to_none=True)
        outcome = self.work(
            batch,
            generator_at(self.seed, "itm", step),
            step=step,
            soft_weight=config.soft_weight * ramp,
            check_drift=check,
        )
        refuse_nan(outcome.itc + outcome.itm, where)
        self.ranks.sum_gradients_(self.trained, self.replicated)
        update_(
            self.optimizer,
            factor=learning_rate_factor(step, config.steps, config.warmup_steps),
            max_norm=config.max_gradient_norm,
            where=where,
        )
        with torch.no_grad():
            self.model.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        if self.work.follower is not None:
            follow_(self.work.follower, self.model, config.momentum)
        self.step += 1
        return self._note(outcome, batch, where, check=check)

    def _note(self, outcome: Outcome, batch: Batch, where: str, *, check: bool) -> dict[str, float]:
        """Write the step into the history, and sound the alarm if it is due."""
        config = self.config
        metrics = {
            "loss": outcome.itc + outcome.itm,
            "itc": outcome.itc,
            "itm": outcome.itm,
            "itm_auc": pair_auc(outcome.itm_score_N, outcome.itm_matched_N),
            "temperature": float(self.model.temperature.detach()),
        }
        health = {name: values[-1] for name, values in self.history.items() if name not in metrics}
        if check and len(batch.row_G) > 1:
            health = self.alarm.check(
                outcome.image_GE,
                outcome.text_GE,
                batch.group_G,
                drift=outcome.queue_drift,
                armed=config.alarms and self.step > config.warmup_steps + 5 * CHECK_EVERY,
                where=where,
            )
        for name, value in (metrics | health).items():
            self.history.setdefault(name, []).append(value)
        return metrics

    def _finish(self) -> None:
        """Leave the model plain: final weights, no adapters, everything trainable again."""
        model, follower = self.model, self.work.follower
        if self.config.final_weights == "momentum":
            assert follower is not None
            with torch.no_grad():
                for own, slow in zip(model.parameters(), follower.parameters(), strict=True):
                    own.copy_(slow)
        merge_lora_(model)
        model.requires_grad_(requires_grad=True)

    def _write_state(self, folder: Path, identity: dict[str, Any], place: tuple[int, int]) -> None:
        model, work = self.model, self.work
        names = training_state.trained_names(model)
        tensors = training_state.take("model", model, names)
        if work.follower is not None:
            tensors |= training_state.take("momentum", work.follower, names)
        if work.queue is not None:
            tensors |= training_state.take("queue", work.queue, work.queue.state_dict())
        if work.bias is not None:
            tensors["bias"] = work.bias.detach()
        tensors |= training_state.optimizer_tensors(self.optimizer)
        record = {
            "identity": identity,
            "step": self.step,
            "place": place,
            "alarm": self.alarm.failed,
            "history": self.history,
            "arithmetic": self.arithmetic,
        }
        training_state.write_state_(folder, tensors, record)

    def _restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        model, work = self.model, self.work
        names = training_state.trained_names(model)
        training_state.put_back_("model", model, names, tensors)
        if work.follower is not None:
            training_state.put_back_("momentum", work.follower, names, tensors)
        if work.queue is not None:
            training_state.put_back_("queue", work.queue, work.queue.state_dict(), tensors)
        if work.bias is not None:
            with torch.no_grad():
                work.bias.copy_(tensors["bias"])
        training_state.restore_optimizer_(self.optimizer, tensors)
        self.step, self.history = record["step"], record["history"]
        self.alarm.failed = record["alarm"]
        order = self.draws.order
        order.epoch, order.position = record["place"]


@torch.no_grad()
def pooled_texts(model: DashClip, states: CachedStates) -> Tensor:
    """What a frozen text encoder says of each text, (V, T)."""
    first, last = model.architecture.fusion_start, len(model.text.layers)
    pooled_VT = torch.zeros(len(states.tokens), model.architecture.text.pooled_width)
    for row_B in states.tokens.by_length(EMBED_BATCH):
        x_BLD, attend_BL = states.batch(row_B)
        with model.precision.autocast(model.device):
            state_BLD = model.text.run(x_BLD, attend_BL, first=first, last=last)
            pooled_VT[row_B] = model.text.pool(state_BLD, attend_BL).float().cpu()
    return pooled_VT


@torch.no_grad()
def centre_text_(model: DashClip, pooled_VT: Tensor) -> None:
    """Let the projection of frozen texts begin at their mean: what all texts of a catalogue share
    says nothing, and is most of what a frozen encoder gives."""
    projection = model.itc_text
    assert projection.bias is not None
    projection.bias.copy_(-(projection.weight @ pooled_VT.mean(0).to(model.device)))


def pair_auc(score_N: Tensor, matched_N: Tensor) -> float:
    """Chance that a matched pair scores above a mismatched one; ties count half, NaN if none."""
    rank_N = rankdata(score_N.float().cpu().numpy())
    matched = matched_N.cpu().numpy().astype(bool)
    positives, negatives = int(matched.sum()), int((~matched).sum())
    if not positives or not negatives:
        return math.nan
    return float(
        (rank_N[matched].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    )
