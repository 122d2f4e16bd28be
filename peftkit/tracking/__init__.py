"""What a run tells: to the terminal, to RUN/metrics.jsonl, and of its libraries' chatter to RUN/logs/."""

from peftkit.tracking.console import Console
from peftkit.tracking.jsonl import JsonLines, truncate_after
from peftkit.tracking.log import Log
from peftkit.tracking.quiet import chatter_to

__all__ = ["Console", "JsonLines", "Log", "chatter_to", "truncate_after"]
