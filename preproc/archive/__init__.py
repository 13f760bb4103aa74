"""Catalogues, searches, signing and reads: everything that touches somebody else's server."""
