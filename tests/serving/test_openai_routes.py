"""OpenAI's own client against a real service: answers are those of `peftkit predict`, alone or beside others."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import openai
import pytest
from starlette.requests import ClientDisconnect

from peftkit.serving.openai_routes import Stream
from tests.serving.conftest import Chats
from tests.serving.running import QUESTIONS, Running, running


def asked(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


@pytest.fixture
def client(chatting: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{chatting.url}/v1", api_key="none", max_retries=0)


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["one", "two", "base"]
    assert client.models.retrieve("two").id == "two"


@pytest.mark.parametrize("name", ["one", "two"])
def test_an_answer_is_that_of_predict(name: str, client: openai.OpenAI, chats: Chats) -> None:
    assert len(set(chats.answers[name])) == len(QUESTIONS)  # else nothing could be mixed up
    assert chats.answers["one"] != chats.answers["two"]
    for question, expected in zip(QUESTIONS, chats.answers[name], strict=True):
        found = client.chat.completions.create(model=name, messages=asked(question))
        assert found.choices[0].message.content == expected
        assert found.choices[0].finish_reason in ("stop", "length")
        assert found.usage and found.usage.completion_tokens <= 20


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI, chats: Chats) -> None:
    for question, expected in zip(QUESTIONS, chats.answers["one"], strict=True):
        pieces = list(
            client.chat.completions.create(
                model="one", messages=asked(question), stream=True, stream_options={"include_usage": True}
            )
        )
        texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
        assert "".join(texts) == expected
        assert len([text for text in texts if text]) > 1
        assert pieces[-2].choices[0].finish_reason
        usage = pieces[-1].usage
        assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_many_at_once_get_what_each_gets_alone(chatting: Running, chats: Chats) -> None:
    """32 clients, two models, streams and whole answers, four places: nothing is lost, nothing is mixed up."""

    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[str, str]:
        await asyncio.sleep(number % 7 * 0.01)
        name, question = ("one", "two")[number % 2], number % len(QUESTIONS)
        expected = chats.answers[name][question]
        if number % 3:
            found = await client.chat.completions.create(model=name, messages=asked(QUESTIONS[question]))
            return found.choices[0].message.content or "", expected
        stream = await client.chat.completions.create(model=name, messages=asked(QUESTIONS[question]), stream=True)
        return "".join([piece.choices[0].delta.content or "" async for piece in stream]), expected

    async def everyone() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{chatting.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(32)))

    for found, expected in asyncio.run(everyone()):
        assert found == expected
    assert chatting.service.worker.running == chatting.service.worker.waiting == 0


def test_the_base_answers_under_its_own_name(client: openai.OpenAI, chats: Chats) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = chats.folder / "one" / "base"
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The quick", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = base.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=3)[0, ids.shape[1] :]
    found = client.completions.create(model="base", prompt="The quick", max_tokens=9)
    assert found.choices[0].text == tokenizer.decode(expected, skip_special_tokens=True)
    assert found.usage and found.usage.completion_tokens == len(expected)


def test_a_text_ends_before_a_stop_word_and_at_its_length(client: openai.OpenAI, chats: Chats) -> None:
    whole = chats.answers["one"][0]
    word = whole[len(whole) // 2 :][:2]
    words: dict[str, Any] = {"model": "one", "messages": asked(QUESTIONS[0])}
    found = client.chat.completions.create(**words, stop=[word, "\x00 never"])
    assert found.choices[0].finish_reason == "stop"
    assert found.choices[0].message.content == whole[: whole.index(word)].strip()
    pieces = client.chat.completions.create(**words, stop=word, stream=True)
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces).strip() == whole[: whole.index(word)].strip()
    )
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        short = client.chat.completions.create(**words, **limit)
        assert short.usage and short.usage.completion_tokens == 3
        assert short.choices[0].finish_reason == "length"
        assert whole.startswith(short.choices[0].message.content or "?")


def test_a_seed_draws_the_same_whoever_else_asks(client: openai.OpenAI, chatting: Running) -> None:
    words: dict[str, Any] = {
        "model": "one",
        "messages": asked("sum"),
        "temperature": 1.5,
        "top_p": 0.95,
        "max_tokens": 12,
    }
    first = client.chat.completions.create(**words, seed=5).choices[0].message.content

    async def crowd() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{chatting.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(client.chat.completions.create(**words, seed=seed) for seed in (3, 4, 5, 6)))

    texts = [found.choices[0].message.content for found in asyncio.run(crowd())]
    assert texts[2] == first
    assert len(set(texts)) > 1
    several = client.chat.completions.create(**words, seed=5, n=2)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert [choice.message.content for choice in several.choices] == [first, texts[3]]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "tow"}, 404, "no model is named 'tow' (did you mean 'two'?)"),
        ({"model": None}, 400, "say which model: one, two, base"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "king", "content": "hello"}]}, 400, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "only parts of the type 'text'",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "message 1 is empty"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            400,
            "nothing to answer",
        ),
        ({"messages": [{"role": "user", "content": "the cat " * 200}]}, 400, "context is 128 tokens"),
        ({"max_tokens": 500}, 400, "no room for 500 more; at most"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 9}, 400, "temperature"),
        ({"n": 99}, 400, "n: "),
        ({"stop": ""}, 400, "stop"),
        ({"logprobs": True}, 400, "'logprobs' is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "'tools' is not supported"),
        ({"max_token": 3}, 400, "'max_token' is not known here (did you mean 'max_tokens'?)"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    change: dict[str, Any], status: int, said: str, chatting: Running
) -> None:
    found = chatting.post("/v1/chat/completions", {"model": "one", "messages": asked("hello"), **change})
    assert found.status_code == status
    error = found.json()["error"]
    assert said in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def test_what_changes_nothing_may_be_sent(chatting: Running, chats: Chats) -> None:
    extra = {"user": "me", "frequency_penalty": 0, "logprobs": False, "metadata": {"a": "b"}, "tools": None}
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]}]}]
    found = chatting.post("/v1/chat/completions", {"model": "one", "messages": parts, **extra}).json()
    assert found["choices"][0]["message"]["content"] == chats.answers["one"][0]


def test_the_client_sees_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model is named"):
        client.chat.completions.create(model="other", messages=asked("hello"))
    with pytest.raises(openai.BadRequestError) as problem:
        client.completions.create(model="one", prompt="the cat " * 200)
    assert problem.value.code == "context_length_exceeded"


def test_one_who_leaves_frees_the_place_at_once(chats: Chats) -> None:
    with running({"one": chats.one}, batch=1) as found:
        body = {"model": "one", "messages": asked("sum"), "max_tokens": 100, "stream": True}
        slow(found)
        with httpx.stream("POST", f"{found.url}/v1/chat/completions", json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            while '"delta": {"content": ' not in next(lines):
                pass
            assert found.service.worker.running == 1
        settled(found)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{found.url}/v1/chat/completions", json={**body, "stream": False}, timeout=0.3)
        settled(found)


def test_a_full_queue_turns_away_and_a_slow_answer_ends(chats: Chats) -> None:
    from peftkit.serving.gate import Limits

    with running({"one": chats.one}, batch=1, max_queue=1, limits=Limits(timeout=1.0)) as found:
        slow(found)
        body = {"model": "one", "messages": asked("sum"), "max_tokens": 100}

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=30) as client:
                return await asyncio.gather(
                    *(client.post(f"{found.url}/v1/chat/completions", json=body) for _ in range(6))
                )

        answers = asyncio.run(crowd())
        codes = sorted(answer.status_code for answer in answers)
        assert set(codes) == {429, 504}
        turned = next(answer for answer in answers if answer.status_code == 429)
        assert turned.headers["retry-after"] == "1"
        settled(found)
        with httpx.stream(
            "POST", f"{found.url}/v1/chat/completions", json={**body, "stream": True}, timeout=30
        ) as stream:
            last = list(stream.iter_lines())[-2]
        assert "longer than a request may" in last


def slow(found: Running) -> None:
    """Let each step take 0.05 s."""
    for lane in found.service.worker.lanes:
        step = lane.step

        def slowly(step: Any = step) -> bool:
            time.sleep(0.05)
            return bool(step())

        lane.step = slowly  # type: ignore[method-assign]


def settled(found: Running) -> None:
    """Wait until nothing runs: at most as long as a text of 100 tokens would take, and much less if it is given up."""
    until = time.monotonic() + 3
    while found.service.worker.running or found.service.worker.waiting:
        assert time.monotonic() < until, "its place is not free"
        time.sleep(0.01)


def test_a_request_that_breaks_the_model_harms_no_other(chats: Chats) -> None:
    """The model raises whenever a token of the poison is among those that it is given."""
    with running({"one": chats.one}, batch=4) as found:
        lane: Any = found.service.models["one"].text_lane
        forward = lane._forward
        poison = found.service.models["one"].chat(asked("poison"))

        def raising(ids: Any, together: Any) -> Any:
            if any(job.ids == poison.ids and len(job.made) == 3 for job in together.jobs):
                raise RuntimeError("secret words")
            return forward(ids, together)

        lane._forward = raising

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=60) as client:
                bodies = [{"model": "one", "messages": asked(text)} for text in [*QUESTIONS, "poison"]]
                return await asyncio.gather(
                    *(client.post(f"{found.url}/v1/chat/completions", json=body) for body in bodies)
                )

        *good, bad = asyncio.run(crowd())
        assert [one.json()["choices"][0]["message"]["content"] for one in good] == chats.answers["one"]
        assert bad.status_code == 500
        assert bad.json()["error"]["message"] == "the model cannot compute this (RuntimeError)"


def test_a_stream_that_nobody_ever_reads_is_given_up() -> None:
    """One who leaves between his request and the first byte."""
    given_up: list[Any] = []

    class Unread:
        jobs = ("a job",)
        service = SimpleNamespace(worker=SimpleNamespace(cancel=given_up.extend))

        async def stream(self) -> Any:
            raise AssertionError("it is not read")
            yield b""

    async def gone(*words: Any) -> Any:
        raise ConnectionAbortedError

    stream = Stream(Unread())  # type: ignore[arg-type]
    with pytest.raises(ClientDisconnect):
        asyncio.run(stream({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, gone))
    assert given_up == ["a job"]
