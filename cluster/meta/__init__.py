"""The meta group's state machine, pure: nodes, shards, jobs and settings of a cluster.

May import node.interfaces, node.mailstore's overlay and memory of requests, and node.engine.keys;
no I/O, no clock, no placement: what a command says was decided before it was proposed.
"""
