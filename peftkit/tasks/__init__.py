"""What is learnt: one small file each."""

from peftkit.tasks.audio_classification import AudioClassification
from peftkit.tasks.base import Task
from peftkit.tasks.causal_lm import CausalLM
from peftkit.tasks.chat import Chat
from peftkit.tasks.image_classification import ImageClassification
from peftkit.tasks.masked_lm import MaskedLM
from peftkit.tasks.multiple_choice import MultipleChoice
from peftkit.tasks.preference import Preference
from peftkit.tasks.question_answering import QuestionAnswering
from peftkit.tasks.reward import Reward
from peftkit.tasks.seq2seq import Seq2Seq
from peftkit.tasks.sequence_classification import SequenceClassification
from peftkit.tasks.speech_recognition import SpeechRecognition
from peftkit.tasks.token_classification import TokenClassification

__all__ = [
    "AudioClassification",
    "CausalLM",
    "Chat",
    "ImageClassification",
    "MaskedLM",
    "MultipleChoice",
    "Preference",
    "QuestionAnswering",
    "Reward",
    "Seq2Seq",
    "SequenceClassification",
    "SpeechRecognition",
    "Task",
    "TokenClassification",
]
