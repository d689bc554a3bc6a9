"""Relevance labels beyond the human ones: annotators, their audit, and which pairs to give them."""
