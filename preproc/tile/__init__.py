"""From scenes to TESSERA's per-pixel time series: radiometry, masks, same-day mosaics, the tile writer."""
