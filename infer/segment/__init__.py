"""The segmentation head: a small U-Net on embeddings, trained on labelled pixels: `python -m infer.segment`."""
