"""gRPC handlers, thin: validate, call a shard, map errors.

The composition root gives a Shards and a Maps to register().
"""

from .base import Shards
from .cluster import Maps
from .register import register

__all__ = ["Maps", "Shards", "register"]
