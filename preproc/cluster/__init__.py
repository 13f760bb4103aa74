"""Everything about clusters: site profiles, job scripts, submitting, looking, repairing, images."""
