"""smalti's venv side: everything before and after the GPU. Never imports torch."""
