import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from embeddings.augment import (
    apply_views,
    draw_views,
    random_views,
)
from embeddings.view_config import PLAIN_DRAWS, ViewConfig

STILL = {"min_scale": 1.0, "brightness": 0.0, "contrast": 0.0}
EVERYTHING = ViewConfig(
    min_scale=0.5,
    aspect=1.3,
    rotation_degrees=20.0,
    shift=0.1,
    horizontal_flip=0.5,
    saturation=0.4,
    hue_degrees=15.0,
    erase=0.3,
)


def images(count, pixels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, pixels, pixels, 3), generator=generator, dtype=torch.uint8)


def floats(pixel_BSS3):
    return pixel_BSS3.float() / 63.75 - 2.0


def views_by_matrix_product(pixel_BSS3, generator):
    """Crop, shift, contrast and brightness with torch's own affine grid."""
    draw_B5 = torch.rand(len(pixel_BSS3), 5, generator=generator)
    scale_B = 0.93 + (1 - 0.93) * draw_B5[:, 0]
    affine_B23 = torch.zeros(len(pixel_BSS3), 2, 3)
    affine_B23[:, 0, 0] = affine_B23[:, 1, 1] = scale_B
    affine_B23[:, :, 2] = (2 * draw_B5[:, 1:3] - 1) * (1 - scale_B)[:, None]
    image_B3SS = pixel_BSS3.permute(0, 3, 1, 2)
    grid = F.affine_grid(affine_B23, list(image_B3SS.shape), align_corners=False)
    view_B3SS = F.grid_sample(image_B3SS, grid, padding_mode="border", align_corners=False)
    contrast_B = 1 + 0.15 * (2 * draw_B5[:, 3] - 1)
    brightness_B = 2 * 0.15 * (2 * draw_B5[:, 4] - 1)
    view_B3SS = view_B3SS * contrast_B[:, None, None, None] + brightness_B[:, None, None, None]
    return view_B3SS.permute(0, 2, 3, 1)


@pytest.mark.parametrize("pixels", [8, 15, 48])
def test_the_defaults_equal_torchs_affine_grid_to_the_bit(pixels):
    pixel_BSS3 = images(7, pixels)
    expected = views_by_matrix_product(floats(pixel_BSS3), torch.Generator().manual_seed(3))
    assert torch.equal(random_views(pixel_BSS3, torch.Generator().manual_seed(3)), expected)


def test_bytes_and_floats_give_the_same_views():
    pixel_BSS3, draw_BK = images(4, 12), draw_views(4, EVERYTHING, torch.Generator().manual_seed(0))
    by_bytes = apply_views(pixel_BSS3, draw_BK, EVERYTHING)
    assert torch.equal(by_bytes, apply_views(floats(pixel_BSS3), draw_BK, EVERYTHING))


@pytest.mark.parametrize("config", [ViewConfig(), EVERYTHING])
@pytest.mark.parametrize("cuts", [[0, 1, 16], [0, 5, 6, 16]])
def test_a_batch_may_be_split_anyhow(config, cuts):
    pixel_BSS3, draw_BK = images(16, 24), draw_views(16, config, torch.Generator().manual_seed(1))
    parts = [
        apply_views(pixel_BSS3[start:stop], draw_BK[start:stop], config)
        for start, stop in itertools.pairwise(cuts)
    ]
    assert torch.equal(torch.cat(parts), apply_views(pixel_BSS3, draw_BK, config))


def test_nothing_asked_for_changes_nothing():
    pixel_BSS3 = images(3, 16)
    same = random_views(pixel_BSS3, torch.Generator().manual_seed(0), ViewConfig(**STILL))
    torch.testing.assert_close(same, floats(pixel_BSS3), atol=1e-5, rtol=0)


def test_a_certain_flip_is_the_mirror_image():
    pixel_BSS3 = images(3, 16)
    config = ViewConfig(**STILL, horizontal_flip=1.0)
    mirrored = random_views(pixel_BSS3, torch.Generator().manual_seed(0), config)
    torch.testing.assert_close(mirrored, floats(pixel_BSS3).flip(2), atol=1e-5, rtol=0)


def test_beyond_the_edge_lies_the_edge_or_the_mirror_image():
    pixel_BSS3 = images(1, 16)
    draw_BK = torch.full((1, PLAIN_DRAWS), 0.5)
    draw_BK[0, 1] = 1.0  # half an image to the right
    views = {
        outside: apply_views(pixel_BSS3, draw_BK, ViewConfig(**STILL, shift=1.0, outside=outside))
        for outside in ("border", "reflection")
    }
    image = floats(pixel_BSS3)
    for view in views.values():
        torch.testing.assert_close(view[:, :, :8], image[:, :, 8:], atol=1e-5, rtol=0)
    edge, mirror = image[:, :, 15:].expand(1, 16, 8, 3), image[:, :, 8:].flip(2)
    torch.testing.assert_close(views["border"][:, :, 8:], edge, atol=1e-5, rtol=0)
    torch.testing.assert_close(views["reflection"][:, :, 8:], mirror, atol=1e-5, rtol=0)


def test_a_quarter_turn_is_rot90():
    pixel_BSS3, config = images(2, 16), ViewConfig(**STILL, rotation_degrees=90.0)
    draw_BK = torch.full((2, config.draws), 0.5)
    draw_BK[0, 6], draw_BK[1, 6] = 0.0, 1.0
    turned = apply_views(pixel_BSS3, draw_BK, config)
    for row, times in ((0, -1), (1, 1)):
        expected = floats(pixel_BSS3)[row].rot90(times, (0, 1))
        torch.testing.assert_close(turned[row], expected, atol=2e-4, rtol=0)


def test_scale_and_shift_by_hand():
    # Half of each side, in the upper left corner: pixel 3.5 of 8 is the view's right edge.
    ramp_S = torch.linspace(-1, 1, 8)
    pixel_BSS3 = ramp_S[None, None, :, None].expand(1, 8, 8, 3).contiguous()
    config = ViewConfig(**STILL | {"min_scale": 0.5})
    draw_BK = torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.5]])
    view = apply_views(pixel_BSS3, draw_BK, config)[0, 0, :, 0]
    place_S = (torch.arange(8) + 0.5) / 2 - 0.5
    torch.testing.assert_close(view, (place_S.clamp(min=0) / 7 * 2 - 1), atol=1e-6, rtol=0)


def test_greys_have_no_colour_to_change():
    config = ViewConfig(**STILL, saturation=1.0, hue_degrees=180.0)
    grey = torch.linspace(-2, 2, 6)[:, None, None, None].expand(6, 4, 4, 3).contiguous()
    view = random_views(grey, torch.Generator().manual_seed(0), config)
    torch.testing.assert_close(view, grey, atol=1e-5, rtol=0)


def test_a_third_of_a_turn_of_hue_makes_red_green():
    config = ViewConfig(**STILL, hue_degrees=120.0)
    draw_BK = torch.full((1, config.draws), 0.5)
    draw_BK[0, 9] = 1.0
    red = torch.tensor([1.0, 0.0, 0.0]).expand(1, 2, 2, 3).contiguous()
    green = apply_views(red, draw_BK, config)[0, 0, 0]
    torch.testing.assert_close(green, torch.tensor([0.0, 1.0, 0.0]), atol=1e-5, rtol=0)


def test_no_saturation_leaves_the_brightness_by_hand():
    config = ViewConfig(**STILL, saturation=1.0)
    draw_BK = torch.full((1, config.draws), 0.5)
    draw_BK[0, 8] = 0.0
    pixel = torch.tensor([1.0, 0.5, -1.0]).expand(1, 2, 2, 3).contiguous()
    grey = apply_views(pixel, draw_BK, config)[0, 1, 1]
    expected = torch.full((3,), 0.299 + 0.587 * 0.5 - 0.114)
    torch.testing.assert_close(grey, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_the_erased_share_is_the_drawn_share(share, ratio):
    config = ViewConfig(**STILL, erase=0.9)
    draw_BK = torch.full((1, config.draws), 0.5)
    draw_BK[0, 10], draw_BK[0, 11] = share / 0.9, ratio
    white = torch.full((1, 200, 200, 3), 2.0)
    hidden = (apply_views(white, draw_BK, config) == 0).float().mean()
    assert float(hidden) == pytest.approx(share, abs=0.01)


def test_equal_generators_give_equal_views_and_others_do_not():
    pixel_BSS3 = images(4, 16)
    first, again, other = (
        random_views(pixel_BSS3, torch.Generator().manual_seed(seed), EVERYTHING)
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.05, 1),
    aspect=st.floats(1, 4),
    rotation=st.floats(0, 180),
    shares=st.lists(st.floats(0, 0.99), min_size=6, max_size=6),
    hue=st.floats(0, 180),
    seed=st.integers(0, 99),
)
def test_no_configuration_makes_numbers_that_are_none(scale, aspect, rotation, shares, hue, seed):
    shift, flip, brightness, contrast, saturation, erase = shares
    config = ViewConfig(
        min_scale=scale,
        aspect=aspect,
        rotation_degrees=rotation,
        shift=shift,
        horizontal_flip=flip,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue_degrees=hue,
        erase=erase,
    )
    view_BSS3 = random_views(images(3, 9, seed), torch.Generator().manual_seed(seed), config)
    assert view_BSS3.shape == (3, 9, 9, 3)
    assert view_BSS3.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("min_scale", 0.0), ("min_scale", 1.1), ("aspect", 0.9), ("horizontal_flip", 1.2)],
        *[("erase", 1.0), ("rotation_degrees", -1.0), ("contrast", float("nan")), ("turns", 1.0)],
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(ValidationError, match=name):
        ViewConfig(**{name: value})


def test_numbers_drawn_for_another_batch_are_refused():
    draw_BK = draw_views(4, ViewConfig(), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"shape \(4, 5\) where 3 images need \(3, 5\)"):
        apply_views(images(3, 8), draw_BK, ViewConfig())
    with pytest.raises(ValueError, match=r"need \(4, 14\)"):
        apply_views(images(4, 8), draw_BK, EVERYTHING)
