"""The template for Ollama says what the model's own does: each is rendered, one by Jinja, the other as Go would."""

from __future__ import annotations

import re
from typing import Any

import pytest

from peftkit.exporters.llama_cpp.modelfile import Message, modelfile, spoken, turns
from tests.exporters.llama_cpp.go import render
from tests.tiny import BOS, EOS, tokenizer

ROLES = (
    "{% for m in messages %}{{ BEFORE }}{{ m.content }}{{ AFTER }}{% endfor %}"
    "{% if add_generation_prompt %}{{ BEGIN }}{% endif %}"
)


def roles(before: str, after: str, begin: str, first: str = "") -> str:
    return first + ROLES.replace("{{ BEFORE }}", before).replace("{{ AFTER }}", after).replace("{{ BEGIN }}", begin)


CHATML = roles("{{ '<|im_start|>' + m.role + '\n' }}", "{{ '<|im_end|>\n' }}", "{{ '<|im_start|>assistant\n' }}")
TEMPLATES = {
    "tiny": tokenizer().chat_template,
    "chatml": CHATML,
    "default system": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nHelp \"me\".<|im_end|>\n' }}{% endif %}"
    + CHATML,
    "llama 3": roles(
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}", "<|eot_id|>",
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}", "{{ bos_token }}",
    ),
    "zephyr": roles("{{ '<|' + m.role + '|>\n' }}", "{{ eos_token + '\n' }}", "{{ '<|assistant|>\n' }}"),
    "gemma": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + roles(
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}", "{{ '<end_of_turn>\n' }}",
        "{{ '<start_of_turn>model\n' }}", "{{ bos_token }}",
    ),
    "mistral": "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}{% set"
    " messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{{ system if loop.first else '' }}{{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "brackets": roles("{{ '{%' + m.role + '%}' }}", "{{ '`\"\"\"\\\\' }}", "{{ '{%assistant%}' }}"),
}  # fmt: skip
TALK = [
    {"role": "user", "content": "One {{ .System }}?"},
    {"role": "assistant", "content": 'Two "quotes"\nand\ttabs.'},
    {"role": "user", "content": "Three – für alle?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "Five?"},
]


def speaking(template: str) -> Any:
    words = tokenizer()
    words.chat_template = template
    return words


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_and_training_say_the_same(name: str, begins: bool) -> None:
    words = speaking(TEMPLATES[name])
    text = modelfile(words, begins, {EOS}, 128)
    found = re.search(r'TEMPLATE """(.*?)"""\n\nPARAMETER', text, re.S)
    assert found, text
    for count in (1, 3, 5):
        for system in ([], [{"role": "system", "content": "Be brief."}]):
            if system and name == "gemma":
                assert "takes no system message" in text
                continue
            talk: list[Message] = [*system, *TALK[:count]]
            expected = spoken(words, talk, True)
            given = render(found[1], system[0]["content"] if system else "", talk)
            assert (words.bos_token if begins else "") + given == (
                expected if not begins or "bos_token" in TEMPLATES[name] else words.bos_token + expected
            )


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    words = speaking(CHATML)
    text = modelfile(words, False, {EOS}, 128)
    found = re.search(r'TEMPLATE """(.*?)"""', text, re.S)
    assert found
    assert render(found[1], "", TALK[:4]) == spoken(words, TALK[:4], False).removesuffix("<|im_end|>\n")


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("m.content", "(m.content if loop.last else 'left out')"),  # as those that drop earlier thoughts
        "{{ messages | length }}" + CHATML,
        "{{ messages[-1].content }}",
        "{{ raise_exception('never') }}",
    ],
)
def test_what_is_no_matter_of_turns_is_left_to_ollama_and_said(template: str) -> None:
    words = speaking(template)
    assert turns(lambda messages, begin: spoken(words, messages, begin)) is None
    text = modelfile(words, False, {EOS}, 128)
    assert "TEMPLATE" not in text
    assert "# The chat template is no matter of turns alone" in text


def test_the_rest_of_the_modelfile() -> None:
    words = tokenizer()
    words.chat_template = None
    lines = modelfile(words, False, {EOS, BOS}, 32_768).splitlines()
    assert lines[1:] == [
        "FROM ./model.gguf",
        "",
        'PARAMETER stop "<s>"',
        'PARAMETER stop "</s>"',
        "PARAMETER num_ctx 8192",
    ]
    assert "PARAMETER num_ctx 128" in modelfile(words, False, {EOS}, 128)


def test_a_begin_that_training_did_not_know_is_told() -> None:
    assert "# In training no <s> stood before" in modelfile(speaking(CHATML), True, {EOS}, 128)
    assert "# In training" not in modelfile(tokenizer(), True, {EOS}, 128)
