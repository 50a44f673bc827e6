"""Adapters in memory: which slots, which bytes, and the tensors of the arena. Knows no requests and no names."""
