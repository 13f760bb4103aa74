"""Batch jobs: scripts, submitting, looking, repairing, images. Only the command line uses this room."""
