import torch

from embeddings.read_views import more_views


def test_views_by_hand():
    # A ramp from left to right: the mirror image falls, crops keep the shape and stay within it.
    ramp = torch.arange(10.0)[None, None, :, None].expand(1, 10, 10, 3)
    assert more_views(ramp, "one") == []
    (mirror,) = more_views(ramp, "mirror")
    assert mirror[0, 0, :, 0].tolist() == list(range(9, -1, -1))
    crops = more_views(ramp, "crops")
    assert len(crops) == 11
    assert all(view.shape == ramp.shape for view in crops)
    centre, left, right = crops[1], crops[2], crops[3]
    assert left.mean() < centre.mean() < right.mean()
    assert float(left.max()) <= 7.001
    assert float(right.min()) >= 1.999
