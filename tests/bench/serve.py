"""32 requests at once against one after the other, and against `transformers serve`, on a merged Llama of 8 x 512 in fp32.

python tests/bench/serve.py [--turns 1] [--requests 32] [--servers peftkit,transformers,continuous]

Each server is a process of one thread. Prompts have 10 to 150 tokens, answers 48, the likeliest each time; what all servers
answer is compared. CPU seconds are the server's, from the first request to the last answer. `continuous` is `transformers serve
--continuous-batching`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.forked import free_port  # noqa: E402
from tests.serving.running import QUESTIONS, chat_run, exported  # noqa: E402
from tests.tiny import save_tiny  # noqa: E402

SHAPE = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1408,
    "max_position_embeddings": 512,
}  # fmt: skip
TOKENS = 48
COMMANDS = {
    "peftkit": "-m peftkit serve mine={folder} --port {port} --batch {requests}",
    "transformers": "-m transformers.cli.transformers serve {folder} --device cpu --port {port}",
    "continuous": "-m transformers.cli.transformers serve {folder} --device cpu --port {port} --continuous-batching",
}


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--servers", default=",".join(COMMANDS))
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="serve-") as name:
        place = Path(name)
        base = save_tiny(place / "base", "llama", **SHAPE)
        folder = exported(chat_run(place / "chat", base), "merged")
        for turn in range(asked.turns):
            known: list[str] = []
            for server in asked.servers.split(","):
                with serving(server, folder, asked.requests) as (process, url):
                    known = report(f"{server} ({turn + 1})", process, url, folder, asked.requests, known)


def report(name: str, process: psutil.Process, url: str, folder: Path, requests: int, known: list[str]) -> list[str]:
    """Print what both ways took; the answers."""
    bodies = [body(number, "mine" if name.startswith("peftkit") else str(folder)) for number in range(requests)]
    asyncio.run(ask(url, bodies[:2], 2))  # whatever is made at the first request
    for at_once in (1, requests):
        cpu, begun = sum(process.cpu_times()[:2]), time.monotonic()
        answers = asyncio.run(ask(url, bodies, at_once))
        cpu, wall = sum(process.cpu_times()[:2]) - cpu, time.monotonic() - begun
        same = sum(found == expected for found, expected in zip(answers, known or answers, strict=True))
        memory = process.memory_info().rss / 1e6
        print(
            f"{name:18} {at_once:3} at once: {cpu:7.2f} s CPU, {wall:7.2f} s, {requests * TOKENS / cpu:7.1f} tokens/CPU s,"
            f" {memory:6.0f} MB, {same} of {requests} answers as the first server's",
            flush=True,
        )
    return known or answers


def body(number: int, model: str) -> dict[str, Any]:
    text = " ".join([QUESTIONS[number % len(QUESTIONS)]] * (1 + number % 3)) + f" {number}"
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }


async def ask(url: str, bodies: Sequence[dict[str, Any]], at_once: int) -> list[str]:
    """All answers, so many requests under way at a time."""
    places = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(timeout=900) as client:

        async def one(asked: dict[str, Any]) -> str:
            async with places:
                found = await client.post(f"{url}/v1/chat/completions", json=asked)
            return str(found.raise_for_status().json()["choices"][0]["message"]["content"]).strip()

        return await asyncio.gather(*map(one, bodies))


@contextmanager
def serving(server: str, folder: Path, requests: int) -> Iterator[tuple[psutil.Process, str]]:
    port = free_port()
    words = COMMANDS[server].format(folder=folder, port=port, requests=requests).split()
    process = subprocess.Popen([sys.executable, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield psutil.Process(process.pid), url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
