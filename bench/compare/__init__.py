"""mailraft beside what a user would pick instead, on the same work: `make compare`.

interface.py   what a peer is: servers, and a client with works
work.py        a work, run by many tasks for some seconds, and what a slice of it is
worker.py      the process that holds one peer's client
etcd.py, postgres.py, nats_jetstream.py, dovecot.py, mailraft.py   one peer each
rows.py        the rows of the table and their aims
results.py     what a run is asked for, and what it has found
run.py         turns: one slice of each peer after the other
alone.py       rows that no slice shows: failover, restart, size, bytes to the device
report.py      pairing, ratios, Markdown and plots
"""
