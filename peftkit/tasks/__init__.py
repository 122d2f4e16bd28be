"""What is learnt: one small file each."""

from peftkit.tasks.audio_classification import AudioClassification
from peftkit.tasks.base import Task
from peftkit.tasks.causal_lm import CausalLM
from peftkit.tasks.chat import Chat
from peftkit.tasks.image_classification import ImageClassification
from peftkit.tasks.preference import Preference
from peftkit.tasks.reward import Reward
from peftkit.tasks.seq2seq import Seq2Seq
from peftkit.tasks.sequence_classification import SequenceClassification
from peftkit.tasks.speech_recognition import SpeechRecognition

__all__ = [
    "AudioClassification",
    "CausalLM",
    "Chat",
    "ImageClassification",
    "Preference",
    "Reward",
    "Seq2Seq",
    "SequenceClassification",
    "SpeechRecognition",
    "Task",
]
