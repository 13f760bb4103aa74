"""From embeddings and labels to a validated crop map."""
