"""smalti's engine: TESSERA tiles in, embeddings out. Runs in a container with torch and numpy, nothing else."""
