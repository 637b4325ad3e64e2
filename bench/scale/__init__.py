"""How throughput and latency change with the size of everything, and what that says of more."""
