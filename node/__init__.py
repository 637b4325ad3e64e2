"""One storage node: engine, consensus, mailstore, the replicas that join them, their services."""
