"""Raft without I/O: Host.step(now, inbox, durable) -> Ready. The only importer of pysyncobj.

stock.py        pysyncobj, pinned, its surroundings replaced, its private names under readable ones
journal.py      the log as pysyncobj sees it: what the engine holds, plus this turn's writes
election.py     corrections to votes and terms
replication.py  corrections to appends, acknowledgements and the commit rule
reads.py        ReadIndex: linearizable reads that cost no log entry
transfer.py     leadership transfer that loses no request
membership.py   who is in the group: learners, promotion, removal
group.py        one replica of one group: pysyncobj with the corrections
heartbeat.py    one heartbeat per peer, for all groups
host.py         all groups of a node
"""
