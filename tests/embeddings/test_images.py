import io
import struct
import zlib

import numpy as np
import polars as pl
import pytest
from PIL import Image

from embeddings.images import decode_image, decode_images


def encoded(size, colour, form="PNG", mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, form)
    return file.getvalue()


def bomb(side):
    """A PNG of a few bytes whose header claims side x side pixels."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def table(*images):
    return pl.DataFrame(
        {"product_id": [f"p{i}" for i in range(len(images))], "image": list(images)}
    )


def test_bytes_paths_and_absent_images(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded((40, 40), (200, 0, 0), "JPEG"))
    by_path = decode_images(table("a.jpg", None, ""), 8, image_root=tmp_path)
    assert by_path.present_P.tolist() == [True, False, False]
    np.testing.assert_allclose(by_path.pixel_PSS3[0, 4, 4], [200, 0, 0], atol=4)
    assert not by_path.pixel_PSS3[1:].any()
    by_bytes = decode_images(table((tmp_path / "a.jpg").read_bytes()), 8)
    np.testing.assert_array_equal(by_bytes.pixel_PSS3[0], by_path.pixel_PSS3[0])
    nothing = decode_images(pl.DataFrame({"product_id": ["p"]}), 8)
    assert nothing.present_P.tolist() == [False]


def test_proportions_are_kept_and_transparency_is_white():
    tall = decode_image(encoded((20, 40), (0, 0, 0)), 16)
    assert tall[8, 8].tolist() == [0, 0, 0]
    assert tall[8, 1].tolist() == [255, 255, 255]
    clear = decode_image(encoded((9, 9), (0, 0, 0, 0), mode="RGBA"), 8)
    assert (clear == 255).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an image", "cannot be decoded"),
        (encoded((64, 64), (1, 2, 3))[:60], "cannot be decoded"),
        (bomb(9_000), "limit of 50000000"),
        (bomb(60_000), "limit of 50000000"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_row(content, message):
    with pytest.raises(ValueError, match=message) as error:
        decode_images(table(encoded((8, 8), "red"), content), 8)
    assert "product 'p1', row 1" in str(error.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"product 'p0', row 0 .*nowhere\.jpg"):
        decode_images(table("nowhere.jpg"), 8, image_root=tmp_path)


def test_the_cache_is_used_while_the_images_are_the_same(tmp_path, monkeypatch):
    red, blue = encoded((8, 8), "red"), encoded((8, 8), "blue")
    cache = tmp_path / "images.npy"
    first = decode_images(table(red, None), 8, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr("embeddings.images.decode_image", None)
        second = decode_images(table(red, None), 8, cache=cache)
    np.testing.assert_array_equal(first.pixel_PSS3, second.pixel_PSS3)
    changed = decode_images(table(blue, None), 8, cache=cache)
    assert changed.pixel_PSS3[0, 0, 0].tolist() == [0, 0, 255]


def test_a_failed_cache_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_images(table(b"x"), 8, cache=tmp_path / "images.npy")
    assert list(tmp_path.iterdir()) == []
