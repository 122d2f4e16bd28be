"""/v1/models, /v1/chat/completions and /v1/completions, as OpenAI's clients know them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from peftkit.serving.asked import Asked, ChatAsked, CompletionAsked
from peftkit.serving.following import Post, submit, submitted, unless_gone
from peftkit.serving.jobs import Piece, Writing, Written
from peftkit.serving.model import Prompt, Served
from peftkit.serving.problems import AskedError, shaped
from peftkit.serving.service import Service


@dataclass(frozen=True)
class Shape:
    """How one of the two ways words its answers."""

    kind: str
    chunk: str
    prefix: str

    def whole(self, number: int, text: str, reason: str) -> dict[str, Any]:
        """A choice of an answer that is told at once."""
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {"index": number, **said, "logprobs": None, "finish_reason": reason}

    def part(self, number: int, text: str | None, reason: str | None = None, first: bool = False) -> dict[str, Any]:
        """A choice of a piece."""
        if self.is_chat:
            role = {"role": "assistant"} if first else {}
            said: dict[str, Any] = {"delta": {**role, **({} if text is None else {"content": text})}}
        else:
            said = {"text": text or ""}
        return {"index": number, **said, "logprobs": None, "finish_reason": reason}

    @property
    def is_chat(self) -> bool:
        return self.kind == "chat.completion"


CHAT = Shape("chat.completion", "chat.completion.chunk", "chatcmpl-")
COMPLETION = Shape("text_completion", "text_completion", "cmpl-")


@dataclass(frozen=True)
class Answer:
    """An answer on its way: what all its parts have in common."""

    service: Service
    served: Served
    shape: Shape
    prompts: Sequence[Prompt]
    jobs: Sequence[Writing]
    post: Post
    head: dict[str, Any]
    include_usage: bool

    async def whole(self) -> Response:
        """All of it, in one piece."""
        ended: dict[int, Written] = {}
        with submitted(self.service.worker, self._lane, self.jobs):
            async for number, told in self.post.read(len(self.jobs)):
                if isinstance(told, Written):
                    ended[number] = told
        choices = [self.shape.whole(number, ended[number].text, ended[number].reason) for number in sorted(ended)]
        usage = self._usage(sum(one.tokens for one in ended.values()))
        return JSONResponse({**self.head, "object": self.shape.kind, "choices": choices, "usage": usage})

    async def stream(self) -> AsyncIterator[bytes]:
        """Its pieces, as server-sent events."""
        written, first = 0, True
        try:
            if self.shape.is_chat:
                for number in range(len(self.jobs)):
                    yield self._event([self.shape.part(number, "", first=True)])
            async for number, told in self.post.read(len(self.jobs)):
                if first:
                    seconds = time.monotonic() - self.jobs[0].since
                    self.service.meters.first.labels(self.served.name).observe(seconds)
                    first = False
                if isinstance(told, Piece):
                    yield self._event([self.shape.part(number, told.text)])
                elif isinstance(told, Written):
                    written += told.tokens
                    yield self._event([self.shape.part(number, None, told.reason)])
            usage = self._usage(written)
            if self.include_usage:
                yield self._event([], usage)
            yield b"data: [DONE]\n\n"
        except AskedError as problem:
            yield _data(shaped(problem.status, str(problem), problem.param, problem.code))

    def begin(self) -> None:
        """Submit the jobs of a stream before its first byte: what is refused then still has a status."""
        submit(self.service.worker, self._lane, self.jobs)

    @property
    def _lane(self) -> Any:
        return self.served.text_lane

    def _usage(self, written: int) -> dict[str, int]:
        read = sum(len(prompt.ids) for prompt in self.prompts)
        tokens = self.service.meters.tokens
        tokens.labels(self.served.name, "read").inc(read)
        tokens.labels(self.served.name, "written").inc(written)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        told = {**self.head, "object": self.shape.chunk, "choices": choices}
        return _data({**told, "usage": usage} if self.include_usage else told)


class Stream(StreamingResponse):
    """A stream whose jobs are under way, and given up when nobody reads any more, even if nobody ever did."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.stream(), media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.service.worker.cancel(self._answer.jobs)


def _data(told: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n".encode()


def routes(service: Service) -> APIRouter:
    """What is added to the application."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The names that `model` may be."""
        return {"object": "list", "data": [service.card(served) for served in service.models.values()]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return service.card(service.find(name))

    @router.post("/chat/completions")
    async def chat(asked: ChatAsked, request: Request) -> Response:
        """An assistant's answer to a conversation."""
        served = service.find(asked.model, "chat")
        messages = [message.model_dump() for message in asked.messages]
        prompt = await asyncio.to_thread(served.chat, messages)
        return await _answered(service, served, CHAT, asked, [prompt], request)

    @router.post("/completions")
    async def completions(asked: CompletionAsked, request: Request) -> Response:
        """How texts go on."""
        served = service.find(asked.model, "completion")
        prompts = [await asyncio.to_thread(served.completion, text) for text in asked.prompts]
        return await _answered(service, served, COMPLETION, asked, prompts, request)

    return router


async def _answered(
    service: Service, served: Served, shape: Shape, asked: Asked, prompts: Sequence[Prompt], request: Request
) -> Response:
    field = "max_completion_tokens" if getattr(asked, "max_completion_tokens", None) else "max_tokens"
    post = Post(service.limits.timeout)
    jobs: list[Writing] = []
    for prompt in prompts:
        room = served.room(prompt, asked.tokens, field)
        for number in range(asked.n):
            tell = post.teller(len(jobs))
            jobs.append(served.writing(prompt, asked.manner(room, number), tell, asked.stream))
    head = {"id": shape.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": served.name}
    answer = Answer(service, served, shape, prompts, jobs, post, head, asked.include_usage)
    if asked.stream:
        answer.begin()
        return Stream(answer)
    return await unless_gone(request, answer.whole()) or Response(status_code=499)
