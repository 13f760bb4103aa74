"""The `report` stage: everything a run has found, on one self-contained page."""
