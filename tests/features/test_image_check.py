import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from features.image_check import image_problem


def encoded(kind: str, size=(40, 30)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_sound_images_have_no_problem(kind):
    assert image_problem(encoded(kind)) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_cut_short_are_found(kind):
    whole = encoded(kind)
    assert image_problem(whole[: len(whole) // 2]) is not None


def test_a_flipped_byte_in_a_png_is_found():
    whole = bytearray(encoded("PNG"))
    whole[len(whole) // 2] ^= 0xFF
    assert image_problem(bytes(whole)) is not None


@pytest.mark.parametrize("data", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_found(data):
    assert "cannot identify" in (image_problem(data) or "")


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    def decoded(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    assert "8000 x 8000 pixels" in (image_problem(png_that_claims(8_000, 8_000)) or "")
    assert "exceeds limit" in (image_problem(png_that_claims(12_000, 12_000)) or "")
    assert "exceeds limit" in (image_problem(png_that_claims(60_000, 60_000)) or "")


def test_the_limit_is_an_argument():
    assert image_problem(encoded("PNG"), max_pixels=1_200) is None
    assert "more than the 1199" in (image_problem(encoded("PNG"), max_pixels=1_199) or "")
