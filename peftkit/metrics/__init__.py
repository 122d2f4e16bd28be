"""How it is scored: one small file each."""

from peftkit.metrics.accuracy import Accuracy, BalancedAccuracy, Hamming, SubsetAccuracy
from peftkit.metrics.answers import AnswerF1, ExactMatch, TextExactMatch, TextF1
from peftkit.metrics.base import Metric
from peftkit.metrics.bleu import Bleu, ChrF
from peftkit.metrics.calibration import Brier, CalibrationError, LogLoss
from peftkit.metrics.confusion import Confusion, MatthewsCorrelation
from peftkit.metrics.entity_f1 import EntityF1
from peftkit.metrics.error_rate import CharacterErrorRate, WordErrorRate
from peftkit.metrics.evaluate import Evaluate
from peftkit.metrics.f1 import F1, Precision, Recall
from peftkit.metrics.loss import Loss
from peftkit.metrics.perplexity import Perplexity
from peftkit.metrics.preference import PreferenceAccuracy
from peftkit.metrics.ranking import PrAuc, RocAuc
from peftkit.metrics.regression import R2, MeanAbsoluteError, MeanSquaredError, Pearson, Spearman
from peftkit.metrics.rouge import Rouge
from peftkit.metrics.tally import Tally
from peftkit.metrics.token_accuracy import TokenAccuracy

__all__ = [
    "F1",
    "R2",
    "Accuracy",
    "AnswerF1",
    "BalancedAccuracy",
    "Bleu",
    "Brier",
    "CalibrationError",
    "CharacterErrorRate",
    "ChrF",
    "Confusion",
    "EntityF1",
    "Evaluate",
    "ExactMatch",
    "Hamming",
    "LogLoss",
    "Loss",
    "MatthewsCorrelation",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Pearson",
    "Perplexity",
    "PrAuc",
    "Precision",
    "PreferenceAccuracy",
    "Recall",
    "RocAuc",
    "Rouge",
    "Spearman",
    "SubsetAccuracy",
    "Tally",
    "TextExactMatch",
    "TextF1",
    "TokenAccuracy",
    "WordErrorRate",
]
