"""`smalti compare`: which model is worth it here, on the labelled pixels alone."""
