"""The Modelfile by which Ollama takes in a GGUF file, with the chat template as Ollama has them: a template of Go's.

What a Jinja template puts around each turn is found by asking it: probes are rendered, and the pieces between their words read
off. The pieces are taken only if they say of longer conversations what the template says. Form and names of the Go template:
https://github.com/ollama/ollama/blob/main/docs/template.md; of the Modelfile: docs/modelfile.md there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

Message = dict[str, str]
Render = Callable[[list[Message], bool], str]
"""Messages, and whether the model's turn shall be begun -> text."""
SYSTEM, ASKED, SAID, AGAIN = "(the system's words)", "(the first question)", "(the first answer)", "(another question)"
LONGEST = 8192
"""Tokens for which Ollama sets memory aside at once, if the model takes more."""


@dataclass(frozen=True)
class Turns:
    """What stands around the words of a conversation."""

    bare: str
    """Before the first question, where no system speaks (or the one that the template brings has spoken)."""
    system: tuple[str, str] | None
    """Before and after the system's words, up to the first question's; None where the template knows no system."""
    ask: tuple[str, str]
    """Before and after a later question."""
    say: tuple[str, str]
    """Before and after an answer."""
    begin: str
    """What the model is given to begin its turn."""

    def render(self, messages: list[Message], begin: bool) -> str:
        """As the template would."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        text = self.bare if system is None or self.system is None else system.join(self.system)
        for number, message in enumerate(message for message in messages if message["role"] != "system"):
            before, after = self.ask if message["role"] == "user" else self.say
            text += (before if number else "") + message["content"] + after
        return text + (self.begin if begin else "")

    def go(self) -> str:
        """The template for Ollama. All text stands in quotes, so that no space is taken from it."""
        heads = [self.bare] if self.system is None else [self.bare, self.system[1]]
        # A question that begins alike everywhere may also be the second message, when Ollama drops the first for want of room.
        alike = all(head.endswith(self.ask[0]) for head in heads)
        cut = len(self.ask[0]) if alike else 0
        ask = quoted(self.ask[0]) if alike else "{{ if $asked }}" + quoted(self.ask[0]) + "{{ end }}{{ $asked = true }}"
        bare = quoted(self.bare[: len(self.bare) - cut])
        opening = [bare]
        if self.system is not None:
            before, after = self.system
            speaks = quoted(before) + "{{ .System }}" + quoted(after[: len(after) - cut])
            opening = ["{{ if .System }}" + speaks + "{{ else }}" + bare + "{{ end }}"]
        lines = [
            *opening,
            *([] if alike else ["{{ $asked := false }}"]),
            "{{ range $i, $_ := .Messages }}",
            "{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            '{{ if eq .Role "user" }}' + ask + "{{ .Content }}" + quoted(self.ask[1]),
            '{{ else if eq .Role "assistant" }}' + quoted(self.say[0]) + "{{ .Content }}",
            "{{ if not $last }}" + quoted(self.say[1]) + "{{ end }}",
            "{{ end }}",
            '{{ if and $last (ne .Role "assistant") }}' + quoted(self.begin) + "{{ end }}",
            "{{ end }}",
        ]
        return "\n".join(line.replace("{{ ", "{{- ", 1) for line in lines if line)

    def without(self, first: str) -> Turns:
        """The same for a program that puts `first` in front by itself."""
        system = self.system and (self.system[0].removeprefix(first), self.system[1])
        return replace(self, bare=self.bare.removeprefix(first), system=system)


def quoted(text: str) -> str:
    """A piece of text in Go's template; JSON's strings are Go's."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def turns(render: Render) -> Turns | None:
    """What the template puts around each turn; None if it is no matter of turns alone."""
    question, answer = user(ASKED), {"role": "assistant", "content": SAID}
    try:
        bare, after = around(render([question], False), ASKED)
        _, middle, closing = around(render([question, answer], False), ASKED, SAID)
        _, opening, end = around(render([question, answer, user(AGAIN)], True), SAID, AGAIN)
        found = Turns(
            bare,
            system_pieces(render),
            (opening.removeprefix(closing), after),
            (middle.removeprefix(after), closing),
            end.removeprefix(after),
        )
        probes = [(messages, begin) for messages in conversations(found.system is not None) for begin in (False, True)]
        same = all(render(messages, begin) == found.render(messages, begin) for messages, begin in probes)
    except (TemplateError, ValueError, TypeError):
        return None
    return found if same else None


def around(text: str, *words: str) -> list[str]:
    """What stands before, between and after the words; ValueError unless each is there once, in this order."""
    pieces = []
    for word in words:
        piece, text = text.split(word)
        pieces.append(piece)
    return [*pieces, text]


def system_pieces(render: Render) -> tuple[str, str] | None:
    try:
        before, after, _ = around(render([{"role": "system", "content": SYSTEM}, user(ASKED)], False), SYSTEM, ASKED)
    except (TemplateError, ValueError, TypeError):
        return None
    return before, after


def user(words: str) -> Message:
    return {"role": "user", "content": words}


def conversations(system: bool) -> Iterable[list[Message]]:
    """Of one to three questions, with and without a system; begun turns are asked for after a question alone."""
    for count in (1, 2, 3):
        talk = [user("How many?")]
        for number in range(1, count):
            talk += [{"role": "assistant", "content": f"{number}, I think."}, user(f"And after {number}?")]
        yield talk
        if system:
            yield [{"role": "system", "content": "Count well."}, *talk]


def modelfile(tokenizer: Any, begins: bool, ends: set[int], context: int, file: str = "model.gguf") -> str:
    """The text of a Modelfile. `begins`: whether llama.cpp puts bos before every text by itself."""
    lines = [f"# ollama create NAME -f {'Modelfile'}", f"FROM ./{file}", ""]
    found = turns(lambda messages, begin: spoken(tokenizer, messages, begin)) if tokenizer.chat_template else None
    if found is not None:
        if begins and not found.bare.startswith(tokenizer.bos_token):
            lines.append(
                f"# In training no {tokenizer.bos_token} stood before a conversation; llama.cpp puts one there."
            )
        if found.system is None:
            lines.append("# The model's chat template takes no system message; one is left out.")
        shown = found.without(tokenizer.bos_token) if begins else found
        lines += [f'TEMPLATE """{shown.go()}"""', ""]
    elif tokenizer.chat_template:
        lines += [
            "# The chat template is no matter of turns alone, so it is not given in Ollama's form here. The GGUF file has it",
            "# (tokenizer.chat_template): Ollama looks for it among those that it knows, else it takes prompts as they are.",
            "",
        ]
    stops = [tokenizer.convert_ids_to_tokens(number) for number in sorted(ends)]
    lines += [f"PARAMETER stop {json.dumps(word, ensure_ascii=False)}" for word in stops if word]
    lines.append(f"PARAMETER num_ctx {min(context, LONGEST)}")
    return "\n".join(lines) + "\n"


def spoken(tokenizer: Any, messages: list[Message], begin: bool) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)
    return text
