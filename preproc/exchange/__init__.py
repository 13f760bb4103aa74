"""Embeddings that others published, into a run; and those of a run out to others, in their formats."""
