"""How it is scored: one small file each."""

from peftkit.metrics.base import Metric
from peftkit.metrics.classification import F1, Accuracy, MatthewsCorrelation
from peftkit.metrics.loss import Loss
from peftkit.metrics.perplexity import Perplexity
from peftkit.metrics.token_accuracy import TokenAccuracy

__all__ = ["F1", "Accuracy", "Loss", "MatthewsCorrelation", "Metric", "Perplexity", "TokenAccuracy"]
