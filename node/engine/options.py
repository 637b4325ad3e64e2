"""How RocksDB is set up: what each family holds decides what it is worth spending on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    WriteBufferManager,
)

from mailraft.node.engine import keys

KIB: Final = 1 << 10
MIB: Final = 1 << 20
_WINDOW_BITS: Final = -14  # RocksDB's default; zstd takes no notice
_STATE_DICTIONARY_BYTES: Final = 64 * KIB
_QUICK, _USUAL = 1, 3  # levels of zstd


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What an operator may size. Memory is about block cache + memtables, whatever the data."""

    # A message takes about 400 bytes of it, and what its headers told (Derived).
    block_cache_bytes: int = 256 * MIB
    memtable_bytes: int = 64 * MIB
    # Table and blob files held open; each costs a descriptor and its footer in memory.
    max_open_files: int = 512
    background_jobs: int = 2
    # What a start replays at most: 119 MiB/s were measured.
    wal_bytes_max: int = 256 * MIB


def database_options(options: StoreOptions) -> Options:
    db = Options(raw_mode=True)
    db.create_if_missing(True)
    db.create_missing_column_families(True)
    # The default, but said: the others either drop synced data or leave holes. What this one
    # drops behind a damaged place is found by the watermark.
    db.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    db.set_paranoid_checks(True)
    db.set_max_total_wal_size(options.wal_bytes_max)
    db.set_max_open_files(options.max_open_files)
    db.set_max_background_jobs(options.background_jobs)
    # No stall: the loop must not wait for a flush. RocksDB's own slowdown triggers stay.
    db.set_write_buffer_manager(WriteBufferManager(options.memtable_bytes, False))
    # Spread the write-back of tables instead of one burst that delays the next log sync.
    db.set_bytes_per_sync(MIB)
    db.set_avoid_unnecessary_blocking_io(True)
    db.set_skip_stats_update_on_db_open(True)
    # One thread writes: memtables need no room for more at a time.
    db.set_allow_concurrent_memtable_write(False)
    # Its own text log, bounded.
    db.set_keep_log_file_num(4)
    db.set_max_log_file_size(16 * MIB)
    db.set_max_manifest_file_size(64 * MIB)
    return db


def family_options(options: StoreOptions) -> dict[str, Options]:
    """By name, for every column family."""
    cache = Cache(options.block_cache_bytes)
    return {
        keys.META: _family(cache, MIB),
        keys.LOG: _log(cache, options),
        keys.BODY: _body(cache, options),
        keys.STATE: _state(cache, options),
    }


def _family(
    cache: Cache, write_buffer_bytes: int, *, bloom_bits: int = 10, block_bytes: int = 16 * KIB
) -> Options:
    family = Options(raw_mode=True)
    family.set_write_buffer_size(write_buffer_bytes)
    family.set_max_write_buffer_number(3)
    family.set_level_compaction_dynamic_level_bytes(True)
    family.set_compression_type(DBCompressionType.lz4())
    family.set_bottommost_compression_type(DBCompressionType.zstd())
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    # A miss holds the GIL for a disk read: index and filter blocks are cached before data, the
    # tops of them and all of level 0 never leave.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_pin_top_level_index_and_filter(True)
    # In parts: whole, the filter of one large table is larger than a shard of the cache, is never
    # kept, and each get reads all of it (3.9 MB were seen in a mailbox of 400,000 messages).
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_block_size(block_bytes)
    table.set_format_version(5)
    if bloom_bits:
        table.set_bloom_filter(bloom_bits, False)
        table.set_partition_filters(True)
    family.set_block_based_table_factory(table)
    return family


def _zstd(family: Options) -> Options:
    """From the first table on: what no compaction has taken yet is a tenth of a young store."""
    family.set_compression_type(DBCompressionType.zstd())
    family.set_compression_options(_WINDOW_BITS, _QUICK, 0, 0)
    return family


def _log(cache: Cache, options: StoreOptions) -> Options:
    """Written once, read back within seconds or by a slow follower, by position: no filter."""
    return _zstd(_family(cache, options.memtable_bytes // 4, bloom_bits=0))


def _body(cache: Cache, options: StoreOptions) -> Options:
    """Bodies lie in blob files, so that compaction moves their references and not the bytes."""
    family = _family(cache, options.memtable_bytes // 2)
    family.set_enable_blob_files(True)
    family.set_min_blob_size(512)
    family.set_blob_file_size(64 * MIB)
    # Compressed where they entered.
    family.set_blob_compression_type(DBCompressionType.none())
    # Rewrite the older half of the files when half of what they hold is garbage.
    family.set_enable_blob_gc(True)
    family.set_blob_gc_age_cutoff(0.5)
    family.set_blob_gc_force_threshold(0.5)
    return family


def _state(cache: Cache, options: StoreOptions) -> Options:
    """Read at any place of a large mailbox, so blocks are small; each table of the last level has a
    dictionary for them, trained on samples of its own rows. That takes 390 bytes a message, where
    LZ4 takes 560, and zstd 440 in blocks four times as large.
    """
    family = _zstd(_family(cache, options.memtable_bytes // 4, block_bytes=4 * KIB))
    family.set_bottommost_compression_options(
        _WINDOW_BITS, _USUAL, 0, _STATE_DICTIONARY_BYTES, True
    )
    family.set_bottommost_zstd_max_train_bytes(100 * _STATE_DICTIONARY_BYTES, True)
    return family
