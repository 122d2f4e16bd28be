"""Which weights train: one small file each."""

from peftkit.strategies.base import Strategy

__all__ = ["Strategy"]
