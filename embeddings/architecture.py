"""What a DashCLIP model is made of, as it stands in its record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from embeddings.encoders import TextShape
from embeddings.image_encoder import ImageShape
from embeddings.read_views import read_pixels
from embeddings.stage1_config import ImageViews
from embeddings.transformer import Norm

RANDOM_TEXT = TextShape(
    vocabulary=260, width=128, layers=4, heads=4, feed_forward=512, positions=512
)
"""The text encoder where there are no weights: small, over bytes."""


class Architecture(BaseModel):
    """Everything that decides the shapes and the preprocessing of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: TextShape
    image: ImageShape
    fusion_layers: int
    """Last text layers that get cross-attention in the multimodal encoder."""
    frozen_text_layers: int
    """Text layers, from the bottom, that no stage changes; their states are cached. All of them
    freezes the text encoder."""
    embedding_dim: int
    """Size of every vector that leaves the model."""
    text_columns: tuple[str, ...]
    """Product columns that make its text, in order."""
    max_text_tokens: int
    max_query_tokens: int
    frozen_image_layers: int = 0
    """Image layers, from the bottom and with all that stands before them, that no stage changes;
    0 trains the whole image encoder, and all of its layers freezes the rest of it too."""
    cross_norm: Norm = "pre"
    """Where cross-attention normalises: "post" is BLIP's."""
    projection_bias: tuple[bool, bool] = (False, False)
    """Whether the ITC projections of text and of image have a bias, as BLIP's do."""
    image_views: ImageViews = "one"
    """What an image's vector is the mean over; see ``embeddings.read_views``."""
    query_layers: int = 0
    """Last layers that the query encoder owns a trained copy of; 0 before stage 2."""
    projection_width: int = 0
    """Hidden units of the product projection; 0 is linear."""

    @property
    def read_pixels(self) -> int:
        """Side that images are best decoded at for the model to read; training may need others."""
        return read_pixels(self.image.pixels, self.image_views)

    @property
    def fusion_start(self) -> int:
        """The layer below which text and multimodal encoder share their states: the first that
        trains or looks at the image."""
        return min(self.frozen_text_layers, self.text.layers - self.fusion_layers)
