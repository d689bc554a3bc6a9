"""Keys of earlier batches, kept for the contrast of later ones.

Shape letters: Q places of the queue, G rows of a global batch, K = G + Q, D embedding size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embeddings.losses import Keys, at_least_float32


class KeyQueue(nn.Module):
    """A ring of momentum embeddings with the product group, kind and step of each.

    It begins empty. The reference implementations begin with random vectors, which for Q / G
    steps are most of the negatives.

    Source:
        He et al. 2020 (MoCo), arXiv:1911.05722; with groups as BLIP's retrieval fine-tuning,
        arXiv:2201.12086.
    """

    image_QD: Tensor
    text_QD: Tensor
    group_Q: Tensor
    kind_Q: Tensor
    step_Q: Tensor
    filled_Q: Tensor
    next: Tensor

    def __init__(self, places: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("image_QD", torch.zeros(places, dim))
        self.register_buffer("text_QD", torch.zeros(places, dim))
        self.register_buffer("group_Q", torch.zeros(places, dtype=torch.int64))
        self.register_buffer("kind_Q", torch.zeros(places, dtype=torch.int64))
        self.register_buffer("step_Q", torch.zeros(places, dtype=torch.int64))
        self.register_buffer("filled_Q", torch.zeros(places, dtype=torch.bool))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.group_Q)

    def keys(self, image_GD: Tensor, text_GD: Tensor, group_G: Tensor, kind_G: Tensor) -> Keys:
        """The batch's own momentum embeddings, followed by the queue."""
        return Keys(
            image_KD=torch.cat([F.normalize(at_least_float32(image_GD), dim=1), self.image_QD]),
            text_KD=torch.cat([F.normalize(at_least_float32(text_GD), dim=1), self.text_QD]),
            group_K=torch.cat([group_G, self.group_Q]),
            kind_K=torch.cat([kind_G, self.kind_Q]),
            filled_K=torch.cat([torch.ones_like(group_G, dtype=torch.bool), self.filled_Q]),
        )

    @torch.no_grad()
    def push_(self, keys: Keys, count: int, step: int) -> None:
        """Keep the first ``count`` keys, those of the batch, in the place of the oldest.

        The batch need not divide the queue; of a batch larger than the queue its end is kept.
        """
        places = len(self)
        if not places:
            return
        kept = slice(max(0, count - places), count)
        at = (self.next + torch.arange(kept.stop - kept.start, device=self.next.device)) % places
        self.image_QD[at] = keys.image_KD[kept].float()
        self.text_QD[at] = keys.text_KD[kept].float()
        self.group_Q[at] = keys.group_K[kept]
        self.kind_Q[at] = keys.kind_K[kept]
        self.step_Q[at] = step
        self.filled_Q[at] = True
        self.next.copy_((self.next + len(at)) % places)

    @torch.no_grad()
    def drift(self, keys: Keys, count: int) -> float:
        """How far the encoders have moved since the queue's keys were made.

        Returns:
            One minus the mean cosine between the text of a product in the queue and the same
            product's text now: 0 is fresh, 1 unrelated; NaN where no product of the batch (the
            first ``count`` keys) is in the queue.
        """
        same_GQ = (keys.group_K[:count, None] == self.group_Q) & self.filled_Q
        same_GQ = same_GQ & (keys.kind_K[:count, None] == self.kind_Q)
        if not bool(same_GQ.any()):
            return float("nan")
        cosine_GQ = keys.text_KD[:count] @ self.text_QD.T
        return float(1 - cosine_GQ[same_GQ].mean())
