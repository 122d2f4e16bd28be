"""What is learnt: one small file each."""

from peftkit.tasks.base import Task

__all__ = ["Task"]
