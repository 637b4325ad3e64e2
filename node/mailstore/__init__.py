"""Mail as a deterministic state machine: apply(view, entry) -> (effects, replies), and the queries.

Pure: no clock, no randomness, no I/O but the view, no MIME parsing. Times, ids and what was
parsed from headers come in the command.
"""
