"""The `plan` stage: what will be read, which tiles are made in which order, and what it will cost."""
