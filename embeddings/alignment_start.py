"""Where the projections of stage 2 begin.

Shape letters: P products, Q queries, X features of a product, D text width, E embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embeddings.encoders import initialise_
from embeddings.model import DashClip
from embeddings.product_features import ProductFeatures


@torch.no_grad()
def initialise_projections_(
    model: DashClip, features: ProductFeatures, query_QD: Tensor, generator: torch.Generator
) -> None:
    """Start both projections from the principal components of the text features.

    Products and queries then begin with nearly the cosines of the text encoder, each side
    centred; the multimodal and image features begin silent and are learned.

    Args:
        model: Has the parts of stage 2.
        features: Of the catalogue.
        query_QD: Read-outs of the query encoder for the training queries.
        generator: Draws what does not come from the components.
    """
    projection, query = model.product_projection, model.query_encoder
    assert projection is not None and query is not None
    start, width = model.architecture.text.width, model.architecture.text.pooled_width
    text, dim = slice(start, start + width), model.dim
    projection.fit_(features)
    text_PD = features.parts()[0][features.has_text_P, text]
    initialise_(projection, generator)
    initialise_(query.projection, generator)
    if not len(text_PD):
        return
    product_mean_D, query_mean_D = text_PD.mean(0), query_QD.mean(0)
    centred_ND = torch.cat([text_PD - product_mean_D, query_QD - query_mean_D])
    _, basis_DD = torch.linalg.eigh((centred_ND.T @ centred_ND).double())
    kept = min(dim, width)
    component_ED = torch.zeros(dim, width)
    component_ED[:kept] = basis_DD[:, -kept:].T.float()
    projection.linear.weight.zero_()
    projection.linear.weight[:, text] = component_ED * projection.scale_X[text]
    if projection.down is not None:
        projection.down.weight.zero_()
    query.projection.weight.copy_(component_ED)
    query.projection.bias.copy_(-component_ED @ query_mean_D)
