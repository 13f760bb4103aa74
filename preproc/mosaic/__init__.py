"""The `stitch` stage: embeddings become one mosaic per UTM zone, with a preview in colours."""
