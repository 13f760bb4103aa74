"""Looking at embeddings without labels: groups of like pixels, and every place like some given ones."""
