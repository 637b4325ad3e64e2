"""The contract between nodes, and of what they store. Not for clients."""
