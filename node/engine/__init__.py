"""RocksDB. The only importer of rocksdict; every key encoding of the node is in keys.py."""
