"""A stand-in for the live services: a STAC API, files read in ranges with tokens, and faults on request."""
