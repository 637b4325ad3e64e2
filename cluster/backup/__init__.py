"""Backups of a cluster, its archived log, and restoring from them (docs/decisions/0012)."""
