"""Microbenchmarks: what each layer of a delivery costs (python -m bench.micro)."""
