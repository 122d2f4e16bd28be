"""What is learnt: one small file each."""

from peftkit.tasks.base import Task
from peftkit.tasks.causal_lm import CausalLM
from peftkit.tasks.chat import Chat
from peftkit.tasks.preference import Preference
from peftkit.tasks.reward import Reward
from peftkit.tasks.sequence_classification import SequenceClassification

__all__ = ["CausalLM", "Chat", "Preference", "Reward", "SequenceClassification", "Task"]
