"""Where: the region of interest, the grid of tiles over it, and the squares of the military grid."""
