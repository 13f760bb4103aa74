"""From a map to an estimate: drawing a reference sample, labelling it, measuring any map with it, asking for more."""
