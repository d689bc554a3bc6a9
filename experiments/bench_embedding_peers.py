"""The plain ways of training and running encoders, which ``adtower bench embeddings`` times.

They are written with Hugging Face's classes as a competent person would write them without
thinking of speed, on the same network and the same data, and they must not be improved: a ratio
is only worth something while its denominator stays.

Shape letters: V texts, B products of a batch, D embedding size, L tokens, N pairs that ITM judges.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

PADDED_TITLE = 30
"""Tokens that BLIP's pre-training pads every text to."""
ENC_TOKEN = 30522
"""The first id after the vocabulary of BERT and MiniLM."""
TEMPERATURE = 0.07


def save_blip(folder: Path, tokenizer: Path, *, image_px: int, seed: int) -> Path:
    """Write a randomly initialised BLIP of MiniLM's text size and a small ViT.

    Args:
        folder: Where the checkpoint goes.
        tokenizer: A tokenizer.json over BERT's vocabulary.
        image_px: Side of the images.
        seed: Of the weights.
    """
    from transformers import BlipConfig, BlipForImageTextRetrieval

    text = {
        "vocab_size": ENC_TOKEN + 3,
        "hidden_size": 384,
        "encoder_hidden_size": 192,
        "intermediate_size": 1536,
        "projection_dim": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "bos_token_id": ENC_TOKEN,
        "pad_token_id": 0,
        "eos_token_id": 102,
        "sep_token_id": 102,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "image_size": image_px,
        "patch_size": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=128)
        model = BlipForImageTextRetrieval(config)
    with _quiet():
        model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


def train_blip_plainly(
    products: pl.DataFrame,
    folder: Path,
    *,
    image_px: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Train a BLIP with ITC and ITM by the book: eager, float32, padded, decoding every epoch.

    Negatives are drawn as in BLIP's own code, one row at a time. Word and position embeddings stay
    as they are, as in adtower's training.

    Args:
        products: title, and image as encoded bytes.
        folder: From ``save_blip``.
        image_px: As given to it.
        steps: Updates.
        batch: Products of one update.
        learning_rate: Constant.
        seed: Of batches and negatives.

    Returns:
        The loss of each step, in nats.
    """
    from transformers import BlipForImageTextRetrieval, PreTrainedTokenizerFast

    with _quiet():
        model = BlipForImageTextRetrieval.from_pretrained(folder, local_files_only=True)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]"
        )
    model.train()
    model.text_encoder.embeddings.requires_grad_(requires_grad=False)
    titles, images = products["title"].to_list(), products["image"].to_list()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.05
    )
    generator = torch.Generator().manual_seed(seed)
    losses, order = [], torch.zeros(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(products), generator=generator)
        rows, order = order[:batch].tolist(), order[batch:]
        pixel_B3SS = torch.stack([_decoded(images[row], image_px) for row in rows])
        tokens = tokenizer(
            [titles[row] for row in rows],
            padding="max_length",
            truncation=True,
            max_length=PADDED_TITLE,
            return_tensors="pt",
        )
        loss = _blip_loss(model, pixel_B3SS, tokens["input_ids"], tokens["attention_mask"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def encode_by_sentence_transformers(texts: Sequence[str], folder: Path) -> NDArray[np.float32]:
    """Encode texts by ``SentenceTransformer.encode`` with its own settings; unit rows (V, D)."""
    from sentence_transformers import SentenceTransformer

    with _quiet():
        model = SentenceTransformer(str(folder), device="cpu")
    return model.encode(
        list(texts), show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True
    )


def _blip_loss(model, pixel_B3SS: Tensor, id_BL: Tensor, mask_BL: Tensor) -> Tensor:
    state_BIC = model.vision_model(pixel_B3SS)[0]
    image_BD = F.normalize(model.vision_proj(state_BIC[:, 0]), dim=1)
    text_BLD = model.text_encoder(id_BL, attention_mask=mask_BL)[0]
    text_BD = F.normalize(model.text_proj(text_BLD[:, 0]), dim=1)
    logit_BB = image_BD @ text_BD.T / TEMPERATURE
    target_B = torch.arange(len(id_BL))
    itc = (F.cross_entropy(logit_BB, target_B) + F.cross_entropy(logit_BB.T, target_B)) / 2
    with torch.no_grad():
        weight_BB = logit_BB.softmax(1) + 1e-4
        weight_BB.fill_diagonal_(0)
        other_BB = logit_BB.T.softmax(1) + 1e-4
        other_BB.fill_diagonal_(0)
        text_for_image = [int(torch.multinomial(row, 1)) for row in weight_BB]
        image_for_text = [int(torch.multinomial(row, 1)) for row in other_BB]
    enc_BL = id_BL.clone()
    enc_BL[:, 0] = ENC_TOKEN
    id_NL = torch.cat([enc_BL, enc_BL, enc_BL[text_for_image]])
    mask_NL = torch.cat([mask_BL, mask_BL, mask_BL[text_for_image]])
    state_NIC = torch.cat([state_BIC, state_BIC[image_for_text], state_BIC])
    fused_NLD = model.text_encoder(
        id_NL,
        attention_mask=mask_NL,
        encoder_hidden_states=state_NIC,
        encoder_attention_mask=torch.ones(state_NIC.shape[:2], dtype=torch.int64),
    )[0]
    matched_N = torch.zeros(len(id_NL), dtype=torch.int64)
    matched_N[: len(id_BL)] = 1
    return itc + F.cross_entropy(model.itm_head(fused_NLD[:, 0]), matched_N)


def _decoded(content: bytes, pixels: int) -> Tensor:
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((pixels, pixels))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


@contextmanager
def _quiet():
    """Hold back the progress bars of loading."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
