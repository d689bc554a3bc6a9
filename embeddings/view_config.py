"""How far random views of an image may differ from it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PLAIN_DRAWS = 5
"""Scale, two shifts, contrast, brightness."""
ALL_DRAWS = 14
"""Those, then aspect, rotation, flip, saturation, hue, and four for erasing."""


class ViewConfig(BaseModel):
    """How far views may differ from the image; the defaults change little."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_scale: float = Field(default=0.93, gt=0, le=1)
    """A view shows at least this share of each side: badges sit in the corners of packshots. The
    area is its square. 1.0 shows all."""
    aspect: float = Field(default=1.0, ge=1, le=4)
    """Width over height of what a view shows changes by at most this factor, either way."""
    rotation_degrees: float = Field(default=0.0, ge=0, le=180)
    """Largest turn to either side."""
    outside: Literal["border", "reflection"] = "border"
    """What a view shows beyond the image's edge: the edge repeated, or the image mirrored."""
    shift: float = Field(default=0.0, ge=0, le=1)
    """How far a view may reach beyond the image, as a share of half its side."""
    horizontal_flip: float = Field(default=0.0, ge=0, le=1)
    """Share of the views that are mirror images. 0.5 is usual for photos without text."""
    brightness: float = Field(default=0.15, ge=0, le=2)
    """Largest change of brightness, as a share of the way from mid-grey to white."""
    contrast: float = Field(default=0.15, ge=0, le=1)
    """Colours move to or from mid-grey by at most this share."""
    saturation: float = Field(default=0.0, ge=0, le=1)
    """Colours move to or from grey of the same brightness by at most this share."""
    hue_degrees: float = Field(default=0.0, ge=0, le=180)
    """Largest turn about the grey axis; 120 would make red green."""
    erase: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of the area that one mid-grey rectangle hides."""

    @property
    def draws(self) -> int:
        """Numbers K that one image needs."""
        more = (self.rotation_degrees, self.horizontal_flip, self.saturation, self.hue_degrees)
        return ALL_DRAWS if self.aspect > 1 or any(more) or self.erase else PLAIN_DRAWS
