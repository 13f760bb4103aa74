"""The `fetch` stage: from scenes to TESSERA's per-pixel time series, one folder a tile."""
