"""The control plane, configuration and commands; the composition root that builds each process."""
