"""Raft without I/O: Host.step(now, inbox, durable) -> Ready. The only importer of pysyncobj.

stock.py        pysyncobj, pinned, its surroundings replaced and its private names given readable ones
journal.py      the log as pysyncobj sees it: a view of what the engine holds, plus this turn's writes
election.py     corrections to votes and terms
replication.py  corrections to appends, acknowledgements and the commit rule
group.py        one replica of one group: pysyncobj with the corrections
heartbeat.py    one heartbeat per peer, for all groups
host.py         all groups of a node
"""
