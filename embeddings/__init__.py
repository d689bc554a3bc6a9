"""Product and query embeddings: trained, judged and stored."""
