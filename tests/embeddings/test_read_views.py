import pytest
import torch

from embeddings.read_views import read_pixels, resized, views_of


def ramp(pixels):
    """Rising from 0 at the left edge to 10 at the right one, (1, pixels, pixels, 3)."""
    value = (torch.arange(pixels) + 0.5) * 10 / pixels
    return value[None, None, :, None].expand(1, pixels, pixels, 3)


@pytest.mark.parametrize("given", [10, 8, 20])
def test_views_by_hand(given):
    # The mirror image falls; a crop shows four fifths of what there is.
    image = ramp(given)
    assert len(views_of(image, "one", 8)) == 1
    whole, mirror = views_of(image, "mirror", 8)
    assert whole.shape == (1, 8, 8, 3)
    assert torch.allclose(mirror, whole.flip(2))
    views = views_of(image, "crops", 8)
    assert len(views) == 12
    assert all(view.shape == whole.shape for view in views)
    centre, left, right = (views[place][0, 0, :, 0] for place in (2, 3, 4))
    inside = torch.arange(1, 7)
    assert torch.allclose(left[inside], (inside + 0.5), atol=0.6)
    assert torch.allclose(right[inside], 2 + (inside + 0.5), atol=0.6)
    assert torch.allclose(centre[inside], 1 + (inside + 0.5), atol=0.6)


def test_crops_of_an_image_read_at_its_size_are_its_own_pixels():
    assert read_pixels(112, "crops") == 140
    assert read_pixels(112, "mirror") == read_pixels(112, "one") == 112
    image = torch.rand(2, 140, 140, 3, generator=torch.Generator().manual_seed(0))
    views = views_of(image, "crops", 112)
    assert torch.equal(views[3], image[:, :112, :112])
    assert torch.equal(views[6], image[:, 28:, 28:])
    assert torch.equal(views[2], image[:, 14:126, 14:126])


def test_what_is_made_smaller_is_averaged():
    stripes = torch.tensor([0.0, 1.0]).repeat(32)[None, None, :, None].expand(1, 64, 64, 3)
    small = resized(stripes, 16)
    assert torch.allclose(small[:, :, 1:-1], torch.full_like(small[:, :, 1:-1], 0.5), atol=0.02)
    assert resized(stripes, 64) is stripes
