import io
import os
import struct
import warnings
import zlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embeddings.images import decode_image, decode_images

FORMATS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]


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


def patched(content, at, *values):
    """The bytes with 16-bit numbers written over them."""
    return content[:at] + b"".join(values) + content[at + sum(map(len, values)) :]


def jpeg_that_claims(width, height):
    content = encoded((8, 8), "red", "JPEG")
    return patched(content, content.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def jpeg_that_claims_twice(width, height):
    """A second, larger frame header after an honest one."""
    content = encoded((8, 8), "red", "JPEG")
    start = content.index(b"\xff\xc0")
    stop = start + 2 + struct.unpack(">H", content[start + 2 : start + 4])[0]
    second = patched(content[start:stop], 5, struct.pack(">HH", height, width))
    return content[:stop] + second + content[stop:]


def gif_that_claims(width, height):
    return patched(encoded((8, 8), "red", "GIF"), 6, struct.pack("<HH", width, height))


def gif_whose_frame_is_larger(width, height):
    """The screen is honest, the first frame on it is not."""
    content = encoded((8, 8), "red", "GIF")
    frame = content.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 8, 8))
    return patched(content, frame + 5, struct.pack("<HH", width, height))


def animated_webp_that_claims(width, height):
    def chunk(name, content):
        return name + struct.pack("<I", len(content)) + content

    def less_one(*sides):
        return b"".join(struct.pack("<I", side - 1)[:3] for side in sides)

    frame = bytes(6) + less_one(8, 8) + b"\1\0\0\0" + encoded((8, 8), "red", "WEBP")[12:]
    body = b"WEBP" + chunk(b"VP8X", b"\2\0\0\0" + less_one(width, height))
    return chunk(b"RIFF", body + chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", frame))


@pytest.mark.parametrize("side", [8_000, 16_000])
@pytest.mark.parametrize(
    "make",
    [
        bomb,
        *[jpeg_that_claims, jpeg_that_claims_twice, gif_that_claims, gif_whose_frame_is_larger],
        animated_webp_that_claims,
    ],
)
def test_a_bomb_of_any_format_is_refused_before_decoding(make, side, monkeypatch):
    def decoded(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    content = make(side) if make is bomb else make(side, side)
    with pytest.raises(ValueError, match="limit of 50000000"):
        decode_image(content, 8)


def test_a_png_that_holds_more_than_it_claims_gives_what_it_claims():
    content = encoded((2_000, 2_000), "red")
    content = patched(content, 16, struct.pack(">II", 4, 4))
    content = patched(content, 29, struct.pack(">I", zlib.crc32(content[12:29])))
    assert decode_image(content, 4).shape == (4, 4, 3)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_only_the_first_frame_is_decoded(form, monkeypatch):
    frames = [Image.new("RGB", (8, 8), (0, 0, 250 - shade)) for shade in range(200)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], lossless=True)

    def sought(self, frame):
        raise AssertionError(f"frame {frame} was looked for")

    for plugin in ("GifImagePlugin.GifImageFile", "PngImagePlugin.PngImageFile"):
        monkeypatch.setattr(f"PIL.{plugin}.seek", sought)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.seek", sought)
    np.testing.assert_allclose(decode_image(file.getvalue(), 8)[4, 4], [0, 0, 250], atol=2)


def test_formats_that_run_programs_are_not_tried():
    with pytest.raises(ValueError, match="none of JPEG, PNG"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 8)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="no such file"):
        decode_images(table("a.jpg"), 8, image_root=tmp_path)


def turned(form):
    """Noise with the mark of a camera held sideways, where the format has one."""
    noise = np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    mark = Image.Exif()
    mark[274] = 6
    file = io.BytesIO()
    marked = {"exif": mark} if form not in ("GIF", "BMP") else {}
    Image.fromarray(noise).save(file, form, **marked)
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "at", "value"),
    [("PNG", 11, 0), ("PNG", 73, 0), ("WEBP", 250, 0), ("TIFF", 12, 1), ("TIFF", 72, 2)],
)
def test_every_kind_of_error_that_pillow_raises_is_a_refusal(form, at, value):
    content = bytearray(turned(form))
    content[at] = value
    with pytest.raises(ValueError, match="it cannot be decoded") as error:
        decode_image(bytes(content), 8)
    assert error.value.__cause__ is not None


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    keep=st.floats(0.2, 1),
)
def test_damaged_bytes_give_an_image_or_a_refusal(form, changes, keep):
    content = bytearray(turned(form))
    for at, value in changes:
        content[at % len(content)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert decode_image(bytes(content[: int(keep * len(content))]), 8).shape == (8, 8, 3)
        except ValueError as error:
            assert "decoded" in str(error) or "limit" in str(error)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), pixels=st.integers(1, 20))
def test_any_proportions_fit_any_square(width, height, pixels):
    assert decode_image(encoded((width, height), "red"), pixels).shape == (pixels, pixels, 3)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_threads_and_cache_change_nothing(tmp_path, workers, cached):
    images = [encoded((9, 7), (i % 256, i // 2 % 256, 7)) if i % 5 else None for i in range(300)]
    cache = tmp_path / "images.npy" if cached else None
    calls = []
    made = decode_images(
        table(*images), 4, cache=cache, workers=workers, progress=lambda *call: calls.append(call)
    )
    alone = [decode_image(image, 4) if image else np.zeros((4, 4, 3)) for image in images]
    np.testing.assert_array_equal(made.pixel_PSS3, np.stack(alone))
    assert made.present_P.tolist() == [image is not None for image in images]
    assert [call[:3] for call in calls] == [("decode images", n, 300) for n in (128, 256, 300)]
    assert calls[-1][3]["seconds_left"] == 0.0
    assert calls[-1][3]["images_per_s"] > 0


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_bad_row_is_the_one_that_is_named(workers):
    images = [encoded((8, 8), "red")] * 600
    for row in (140, 139, 500):
        images[row] = b"bad"
    with pytest.raises(ValueError, match="product 'p139', row 139"):
        decode_images(table(*images), 4, workers=workers)


def test_the_cache_is_used_while_the_images_are_the_same(tmp_path, monkeypatch):
    red, blue = encoded((8, 8), "red"), encoded((8, 8), "blue")
    cache = tmp_path / "images.npy"
    first = decode_images(table(red, None), 8, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr("embeddings.images._decode", None)
        second = decode_images(table(red, None), 8, cache=cache)
    np.testing.assert_array_equal(first.pixel_PSS3, second.pixel_PSS3)
    changed = decode_images(table(blue, None), 8, cache=cache)
    assert changed.pixel_PSS3[0, 0, 0].tolist() == [0, 0, 255]
    assert decode_images(table(blue, None), 6, cache=cache).pixel_PSS3.shape == (2, 6, 6, 3)


def test_a_file_that_was_replaced_is_decoded_again(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded((8, 8), "red"))
    cache = tmp_path / "images.npy"
    decode_images(table("a.png", None), 4, image_root=tmp_path, cache=cache)
    (tmp_path / "a.png").write_bytes(encoded((8, 8), "blue"))
    os.utime(tmp_path / "a.png", ns=(1, 1))
    changed = decode_images(table("a.png", None), 4, image_root=tmp_path, cache=cache)
    assert changed.pixel_PSS3[0, 0, 0].tolist() == [0, 0, 255]


def test_a_failed_cache_leaves_nothing_to_be_taken_for_whole(tmp_path):
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_images(table(b"x"), 8, cache=tmp_path / "images.npy")
    assert [path.name for path in tmp_path.iterdir()] == [".images.npy.lock"]


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        ([b"x"], {"pixels": 0}, "pixels=0 must be at least 1"),
        ([b"x"], {"pixels": 8, "workers": 0}, "workers=0 must be at least 1"),
        ([1, 2], {"pixels": 8}, "column image has type Int64"),
    ],
)
def test_what_makes_no_sense_is_refused(images, settings, message):
    with pytest.raises(ValueError, match=message):
        decode_images(table(*images), **settings)


def test_no_images_at_all_need_no_cache_and_no_decoder(tmp_path):
    empty = decode_images(table(), 8, cache=tmp_path / "images.npy")
    assert empty.pixel_PSS3.shape == (0, 8, 8, 3)
    assert not decode_images(table(None, None), 8).present_P.any()
