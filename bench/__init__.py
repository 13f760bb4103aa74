"""Benchmarks, from the root of the checkout: `python -m bench.fetch`, `bench.infer`, `bench.plan`."""
