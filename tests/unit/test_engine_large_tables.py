from __future__ import annotations

import random
from pathlib import Path

from mailraft.node.engine import keys
from mailraft.node.engine.options import MIB, StoreOptions
from mailraft.node.engine.rocks import RocksBackend

# So many keys that the filter of their one table, 10 bits for each, is larger than a shard of the
# cache: as in the default cache with three million.
ROWS = 1_000_000
SPREAD, PRIME = 7_919, 1_000_003  # keys out of order, so that flushed tables have to be merged
ROWS_PER_BATCH = 100_000
OPTIONS = StoreOptions(block_cache_bytes=8 * MIB)
GETS = 50
READ_MAX_BYTES = 128 * 1024  # by one get of what is in no cache


def read_bytes() -> int:
    """Whatever this process has read until now, from disk or from the kernel's cache."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def key(number: int) -> bytes:
    """Another one for each number."""
    return (number * SPREAD % PRIME).to_bytes(8)


def test_a_get_reads_a_few_blocks_however_large_the_table(tmp_path: Path) -> None:
    """Filter and index are read in parts: a shard with a million messages answers as one with a
    thousand. Read whole, they were 4 MB for each key.
    """
    backend = RocksBackend(tmp_path / "db", OPTIONS)
    chance = random.Random(1)
    for start in range(0, ROWS, ROWS_PER_BATCH):
        batch = backend.batch()
        for number in range(start, start + ROWS_PER_BATCH):
            batch.put(keys.STATE, key(number), chance.randbytes(8))
        backend.write(batch)
    family = backend._families[keys.STATE]
    family.flush()
    family.compact_range(None, None)
    before = read_bytes()
    for _ in range(GETS):
        assert backend.get(keys.STATE, key(chance.randrange(ROWS))) is not None
    assert (read_bytes() - before) / GETS < READ_MAX_BYTES
    backend.close()
