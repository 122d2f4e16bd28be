"""What OpenAI's clients send, as far as it is understood: what would change an answer and is not, is refused by name."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from peftkit.registry import did_you_mean
from peftkit.serving.jobs import Manner
from peftkit.serving.problems import AskedError

IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "verbosity"),
)
"""They change no answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
}
"""Understood only with these values, with which they do nothing; or left out."""

Stop = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(BaseModel):
    """What both ways of asking for a text have."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    """A name of `/v1/models`; may be left out where there is one."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer, in tokens; left out: as the model was trained to write."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0, or left out: the likeliest token each time, as `peftkit predict`."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw from the likeliest tokens that have this share of the chances together."""
    seed: int | None = None
    """The same text each time, where tokens are drawn."""
    n: Annotated[int, Field(ge=1, le=16)] = 1
    """So many answers."""
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    """Texts before which the answer ends."""
    stream: bool = False
    """Answer piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _known(self) -> Asked:
        for name, value in (self.model_extra or {}).items():
            if name in IGNORED or value is None:
                continue
            if name not in NEUTRAL:
                raise ValueError(f"{name!r} is not known here{did_you_mean(name, type(self).model_fields)}")
            if value not in NEUTRAL[name]:
                raise ValueError(f"{name!r} is not supported; leave it out")
        return self

    @property
    def tokens(self) -> int | None:
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def manner(self, max_new_tokens: int, number: int) -> Manner:
        """How the answer with this number is written."""
        drawn = self.top_p is not None and self.top_p < 1
        temperature = self.temperature if self.temperature is not None else float(drawn)
        seed = secrets.randbits(32) if self.seed is None else self.seed + number
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Manner(max_new_tokens, temperature, self.top_p or 1.0, seed % 2**63, tuple(stops))


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    """A text, or its parts: `[{"type": "text", "text": ...}]`."""

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
            raise ValueError("only parts of the type 'text' are read")
        return "".join(part["text"] for part in value)


class ChatAsked(Asked):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Another name of `max_tokens`."""

    @property
    def tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionAsked(Asked):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]
    """A text to be continued, or several."""

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def in_a_sentence(problems: list[Any]) -> AskedError:
    """pydantic's errors, without what was sent."""
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "str", "list[str]", "query"))
    text = "the body is no JSON" if first["type"] == "json_invalid" else first["msg"].removeprefix("Value error, ")
    return AskedError(f"{place}: {text}" if place and first["type"] != "json_invalid" else text, place or None)
