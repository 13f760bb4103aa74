"""Pixels from somebody else's server: transport, signatures, buckets, TIFF layout, placement on a tile's grid."""
