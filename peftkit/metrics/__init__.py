"""How it is scored: one small file each."""

from peftkit.metrics.base import Metric
from peftkit.metrics.loss import Loss

__all__ = ["Loss", "Metric"]
