"""docs/capacity.md, from the model of bench/scale/capacity.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.scale.capacity import (
    DAY_S,
    GIB,
    IDLE_PERCENT_MAX,
    MAILBOXES,
    NODE,
    PROFILES,
    REPLICAS,
    TIB,
    Costs,
    Needs,
    Profile,
    at_most,
    fitted,
    full_rate,
    map_bytes,
    needs,
)
from bench.scale.data import Data
from bench.scale.fit import Fit
from bench.scale.measure import KIB, MIB

from mailraft.cluster.mapfile import NODES_MAX, SHARDS_MAX
from mailraft.node.pace import BYTES_PER_S, SHARE_MIN

PIB = 1024 * TIB
CLIENTS = 10_000
META_ASKS_PER_S = 2  # of each node, by who leads the meta group (docs/decisions/0009)
CALL_CPU_S = 0.0003  # of a unary gRPC call in Python, whatever it does
COEFFICIENTS = {
    "mail": "a mail, each replica",
    "entry": "a log entry, each replica",
    "round": "a round, each replica",
    "KiB": "a KiB",
    "streamed KiB": "a KiB of 1 MiB or more",
    "read": "a read",
    "call": "a call of its own",
    "node": "a node",
    "peer": "a peer",
    "group": "a group on it",
}


def write(data: Data, folder: Path) -> None:
    """Replace the document."""
    (folder / "capacity.md").write_text(markdown(data), "utf-8")


def markdown(data: Data) -> str:
    costs = fitted(data)
    return "\n".join([*_model(costs), *_needs(costs), *_breaks(costs)])


def _model(costs: Costs) -> Iterator[str]:
    yield _INTRODUCTION
    yield "| what | model | held-out error: median | worst |"
    yield "|---|---|--:|--:|"
    for name, found, unit in (
        ("delivery, ms of CPU of all nodes", costs.deliver, "ms"),
        ("fetch of one mail", costs.fetch, "ms"),
        ("page of 50 envelopes", costs.page, "ms"),
        ("idle node, % of a core", costs.idle_cpu, "%"),
        ("idle node, MiB", costs.idle_memory, "MiB"),
    ):
        errors = f"{found.typical_error:.0%} | {found.worst_error:.0%}"
        yield f"| {name} | {_formula(found, unit)} | {errors} |"
    yield ""
    yield _MODEL.format(disk_ratio=costs.disk_ratio)


def _formula(found: Fit, unit: str) -> str:
    return " + ".join(
        f"{value:.3g} {unit} × {COEFFICIENTS[name]}"
        for name, value in found.model.coefficients.items()
        if value
    )


def _needs(costs: Costs) -> Iterator[str]:
    yield _ASSUMPTIONS
    yield "| a mailbox | mails a day | of | fetches | pages | kept, days | busiest hour / mean |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for profile in PROFILES:
        yield (
            f"| {profile.name} | {profile.mails_a_day:g} | {profile.mail_bytes // KIB} KiB"
            f" | {profile.fetches_a_day:g} | {profile.pages_a_day:g} | {profile.kept_days}"
            f" | {profile.busy:g} |"
        )
    yield ""
    columns = [(profile, count) for count in MAILBOXES for profile in PROFILES]
    found = [needs(profile, count, costs) for profile, count in columns]
    heads = (f"{count / 1e6:,.0f} million, {profile.name}" for profile, count in columns)
    yield f"| in the busiest hour | {' | '.join(heads)} |"
    yield f"|---|{'--:|' * len(columns)}"
    for name, value in _ROWS:
        yield f"| {name} | {' | '.join(value(each) for each in found)} |"
    yield ""
    yield from _worked(PROFILES[-1], MAILBOXES[0], costs)


_ROWS: Sequence[tuple[str, Callable[[Needs], str]]] = (
    ("mails a second", lambda each: f"{each.mails_per_s:,.0f}"),
    ("fetches, pages a second", lambda each: f"{each.fetches_per_s:,.0f}, {each.pages_per_s:,.0f}"),
    ("cores of nodes that are busy", lambda each: f"{each.cores:,.0f}"),
    ("disk, all replicas", lambda each: f"{each.disk_bytes / PIB:,.2f} PiB"),
    ("network, all nodes", lambda each: f"{each.network_bytes_per_s * 8 / 1e9:,.1f} Gbit/s"),
    ("shards", lambda each: f"{each.shards:,}"),
    ("nodes by CPU", lambda each: f"{each.nodes_by_cpu:,}"),
    ("nodes by disk", lambda each: f"{each.nodes_by_disk:,}"),
    ("nodes by network", lambda each: f"{each.nodes_by_network:,}"),
    ("**nodes**", lambda each: f"**{each.nodes:,}**"),
    ("groups a node", lambda each: f"{each.groups:,.0f}"),
    ("each idle, % of its core, in one cluster", lambda each: f"{each.idle_percent:,.0f}"),
    ("the same, beating to fewer (below)", lambda each: f"{each.idle_percent_shared:,.0f}"),
    ("memory a node, before caches", lambda each: f"{each.memory_mib:,.0f} MiB"),
    ("**clusters to split it into**", lambda each: f"{each.clusters:,}"),
)


def _worked(profile: Profile, mailboxes: int, costs: Costs) -> Iterator[str]:
    found = needs(profile, mailboxes, costs)
    kept = mailboxes * profile.mails_a_day * profile.kept_days * profile.mail_bytes
    yield _WORKED.format(
        mailboxes=f"{mailboxes:,}",
        name=profile.name,
        mails=f"{profile.mails_a_day:g}",
        busy=f"{profile.busy:g}",
        day=f"{DAY_S:,}",
        rate=f"{found.mails_per_s:,.0f}",
        days=profile.kept_days,
        size=profile.mail_bytes // KIB,
        kept=f"{kept / PIB:,.2f}",
        ratio=f"{costs.disk_ratio:.2f}",
        disk=f"{found.disk_bytes / PIB:,.2f}",
        shard=NODE.shard_bytes // GIB,
        shards=f"{found.shards:,}",
        per_node=f"{NODE.disk_bytes * NODE.disk_used / TIB:.1f}",
        nodes=f"{found.nodes_by_disk:,}",
        cores=f"{found.cores:,.0f}",
        by_cpu=f"{found.nodes_by_cpu:,}",
    )


def _breaks(costs: Costs) -> Iterator[str]:
    thousand = map_bytes(1_000, SHARDS_MAX)
    idle = costs.idle_cpu.model.coefficients
    groups, peers = (at_most(costs, what, IDLE_PERCENT_MAX) for what in ("group", "peer"))
    node_bytes = NODE.disk_bytes * NODE.disk_used
    yield _BREAKS.format(
        shards_max=f"{SHARDS_MAX:,}",
        nodes_max=f"{NODES_MAX:,}",
        shard=NODE.shard_bytes // GIB,
        most_pib=f"{SHARDS_MAX * NODE.shard_bytes / PIB:.1f}",
        map_kib=f"{thousand / KIB:,.0f}",
        clients=f"{CLIENTS:,}",
        map_gb=f"{thousand * CLIENTS / 1e9:.1f}",
        map_s=f"{thousand * CLIENTS / 1.25e9:.1f}",
        asks=META_ASKS_PER_S,
        meta_nodes=f"{1 / (META_ASKS_PER_S * CALL_CPU_S):,.0f}",
        call_us=f"{CALL_CPU_S * 1e6:.0f}",
        per_group=f"{idle['group']:.3f}",
        per_node=f"{idle['node']:.1f}",
        per_peer=f"{idle['peer']:.2f}",
        some_peers=f"{peers:,.0f}",
        all_peers=f"{at_most(costs, 'peer', 100.0):,.0f}",
        percent=f"{IDLE_PERCENT_MAX:.0f}",
        groups=f"{groups:,.0f}",
        rate=BYTES_PER_S // MIB,
        slowest=f"{BYTES_PER_S * SHARE_MIN / MIB:.0f}",
        shard_minutes=f"{NODE.shard_bytes / BYTES_PER_S / 60:.0f}",
        node_tib=f"{node_bytes / TIB:.1f}",
        node_hours=f"{node_bytes / BYTES_PER_S / 3600:.0f}",
        node_days=f"{node_bytes / BYTES_PER_S / SHARE_MIN / DAY_S:.0f}",
        peers=20,
        peer_hours=f"{node_bytes / BYTES_PER_S / 3600 / 20:.1f}",
        alone=f"{full_rate(costs, batched=False):,.0f}",
        batched=f"{full_rate(costs, batched=True):,.0f}",
        replicas=REPLICAS,
    )


_INTRODUCTION = """\
# Capacity

What a cluster of some size can do, and where this design would break. Written by `make scale` from
[scale.json](scale.json); the measurements are shown in [scale.md](scale.md). The model says what
CPU costs, since that is what a Python process runs out of; disk and network are arithmetic.

## The model

Costs are linear in what causes them, none below 0, fitted by least squares of relative errors. The
error is that of points the model had not seen: a quarter of them is held out at a time.
"""

_MODEL = """\
- Of what was measured, what the same nodes take idle is taken off first.
- **a log entry**: mails of one shard that are in flight together share one. Entries a mail = shards
  that have any of the calls in flight / calls in flight.
- **a round**: entries of several shards are flushed, sent and answered together. Rounds a mail =
  min(1, nodes / calls in flight).
- **a call of its own**: what waits for one node travels together, two calls at a time. Calls a read
  = min(1, 2 × nodes / calls in flight).
- On the disk of one replica a byte of mail took {disk_ratio:.2f} bytes (median of the clusters
  above), of text of which half compresses, with the log that was not yet compacted. Attachments
  that are compressed already take 1.
- **a peer** of a node is each other node of the cluster.

The errors are largest at the ends of the scale, where what the model leaves out counts: the loop
waking up for one call, hundreds of logs on two cores. It is meant for "ten nodes or a hundred", not
for "ten or eleven".
"""

_ASSUMPTIONS = """\
## What some mailboxes need

Assumed, not measured. A mailbox, a day:
"""

_WORKED = """\
A node is planned as one process: half of its one loop in the busiest hour, {per_node} TiB of disk
used, an eighth of a host's 10 Gbit/s at 40 %. Shards are of {shard} GiB. No batching is counted on:
in so many shards each mail is a log entry of its own.

For {mailboxes} mailboxes ({name}): {mailboxes} × {mails} mails × {busy} / {day} s = {rate} mails a
second in the busiest hour. Kept: {mailboxes} × {mails} × {days} days × {size} KiB = {kept} PiB, ×
{ratio} on disk × 3 replicas = {disk} PiB. / {per_node} TiB = {nodes} nodes, and {shards} shards.
The CPU of {cores} busy cores needs {by_cpu} nodes at half a loop. **Disk decides, not Python**:
what calls cost is little. What nodes cost each other is not: the two rows of idle nodes, and the
first item below. Caches come on top of the memory (`block_cache_bytes`, 256 MiB by default), and so
does what large mails have in flight.
"""

_BREAKS = """\
## Where it would break

In the order in which a growing cluster would meet it.

1. **Heartbeats.** Those of all groups travel in one message, ten times a second to each node on
   which one leads a shard, and once a second to every other node of the map. An idle node takes
   {per_node} % of a core and {per_peer} % for each other node: {percent} % at {some_peers} of them,
   all of it at {all_peers}. (Fitted to clusters of 1 to 10 nodes. In the smaller every node leads
   at every other, so it is too high for large ones, where most share nothing.) Placing shards in
   fewer combinations of nodes (copysets) would make those that one leads at few.
2. **Time to move or heal.** A snapshot is sent at {rate} MiB/s at most, and at {slowest} MiB/s when
   callers already wait. A shard of {shard} GiB takes {shard_minutes} minutes; {node_tib} TiB, all
   of a node, {node_hours} hours into one other node, and {node_days} days if every loop is late.
   After a node died its shards are copied from and to many: over {peers} nodes {peer_hours} hours.
   Until then they have two replicas. Larger disks make it worse in proportion; smaller nodes,
   several to a host, are the answer.
3. **Shards.** A cluster begins with at most {shards_max} of them ({nodes_max} nodes), and this
   version cannot split one: of {shard} GiB each that is {most_pib} PiB of mail. Past it shards
   grow, and 2. gets worse; or there are several clusters, and a directory that knows in which one
   an account is. That is what 100 million mailboxes need in any case, also so that one mistake does
   not reach all.
4. **One loop a node.** A node with a core of its own takes {alone} mails of 4 KiB a second one by
   one and {batched} in batches, as one of {replicas} replicas. A *shard* cannot be faster than the
   node that leads it, and an *account* not than its shard: one mailbox that gets more than that (a
   journal of everything, a spam trap) has to be several accounts. More processes a host are more
   nodes.
5. **Groups a node.** {per_group} % of a core for each idle group: {percent} % at {groups}. Nodes
   that are planned as above are far from it; a small cluster with thousands of shards would not be.
6. **The map.** 1,000 nodes with {shards_max} shards are {map_kib} KiB, and everybody gets all of it
   with each change: {clients} clients {map_gb} GB, {map_s} s of a 10 Gbit/s link, times each step
   of a rebalance. Beyond that the map has to be told in differences, or by shard.
7. **The meta group.** Whoever leads it asks every node {asks} times a second. At {call_us} µs a
   call all of its core is taken at {meta_nodes} nodes; the interval has to grow with the cluster
   before (docs/decisions/0009). Mail needs no meta group: nothing is lost, changes are late.
"""
