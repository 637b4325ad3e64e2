"""python -m mailraft.cluster.cli: the command without its script."""

from mailraft.cluster.cli import main

main()
