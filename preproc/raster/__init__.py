"""Pixels on the ground: the grid of a mosaic, the windowed writer of cloud-optimised GeoTIFFs, pictures and records."""
