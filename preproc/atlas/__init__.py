"""`smalti atlas`: what a run gives as a map for a browser, in one folder that needs nothing from elsewhere."""
