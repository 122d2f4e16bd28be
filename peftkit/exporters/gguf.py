"""One GGUF file with everything in it, for llama.cpp and what is built on it, and a Modelfile for Ollama."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.errors import ExportError
from peftkit.exporters.base import Exporter, Reading, coarse
from peftkit.exporters.merged import whole

if TYPE_CHECKING:
    from torch import nn

    from peftkit.exporters.runtime import Runtime
    from peftkit.strategies import Strategy
    from peftkit.tasks import Task

FILE = "model.gguf"
ALLOWED = {"f32": 0.002, "f16": 0.004, "bf16": 0.03, "q8_0": 0.1, "q4_k_m": 0.45}


class Gguf(Exporter, name="gguf"):
    """model.gguf and an Ollama Modelfile: the merged model for llama.cpp, whole or quantised."""

    keeps_model: ClassVar[bool] = False

    packages: ClassVar[tuple[str, ...]] = ("llama_cpp",)
    extra: ClassVar[str] = "llama"

    outtype: Literal["f32", "f16", "bf16", "q8_0", "q4_k_m"] = "f16"
    """How weights are stored. f16 holds merged weights eight times as exactly as bf16 in as much room; q8_0 takes about half
    of that, q4_k_m a third."""

    def stored(self, reading: Reading) -> str:
        return coarse(self.outtype, reading) if self.outtype.startswith("q") else self.outtype

    @property
    def tolerance(self) -> float:
        """Four times, for f32, and twice of what was measured.

        Logits of SmolLM2-135M-Instruct, trained and merged, differ by 1e-6 of their size in f32, 0.14 % in f16, 1.0 % in bf16,
        4.0 % in q8_0 and 15 % in q4_k_m. Those of tiny models with GELU, which llama.cpp looks up in a table, differ by 0.05 %
        in f32, and in the other formats by 0.2 %, 1.3 %, 4.4 % and 22 %.
        """
        return ALLOWED[self.outtype]

    def refuses(self, task: Task, config: Any, strategy: Strategy) -> str:
        """Only what writes text, by an architecture that llama.cpp was compared on."""
        if task.model_class().__name__ != "AutoModelForCausalLM":
            return f"llama.cpp writes text, and --task {task.name} is answered by another kind of model"
        from peftkit.exporters.llama_cpp.architectures import unknown

        return unknown(config)

    def write(
        self, model: nn.Module, strategy: Strategy, folder: Path, reading: Reading, sample: Mapping[str, Any]
    ) -> None:
        """Merge in fp32, write every weight once in its format. Raises ExportError if llama.cpp would read texts otherwise."""
        from transformers import AutoTokenizer

        from peftkit.exporters.card import licence_of
        from peftkit.exporters.llama_cpp import architectures
        from peftkit.exporters.llama_cpp.modelfile import modelfile
        from peftkit.exporters.llama_cpp.vocabulary import ends_of, vocabulary
        from peftkit.exporters.llama_cpp.write import About, write

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=reading.trust_remote_code)
        plain = whole(model, strategy)
        ends = ends_of(plain, tokenizer)
        words = vocabulary(tokenizer, plain.get_input_embeddings().num_embeddings, ends)
        about = About(f"{Path(reading.base).name}-{strategy.name}", reading.base, licence_of(Path(reading.base)))
        write(plain, words, folder / FILE, self.outtype, about)
        plain.config.save_pretrained(folder)
        plain.generation_config.save_pretrained(folder)
        text = modelfile(tokenizer, words.begins, ends, architectures.context(plain.config))
        (folder / "Modelfile").write_text(text, encoding="utf-8")

    def open(self, folder: Path, reading: Reading) -> Runtime:
        """In llama.cpp, on the CPU. Raises ExportError if there is no model.gguf."""
        from peftkit.exporters.llama_cpp.runtime import open_file

        if not (folder / FILE).is_file():
            raise ExportError(f"{folder} has no {FILE}")
        return open_file(folder / FILE, exact=self.outtype == "f32")

    def example(self, folder: str, reading: Reading) -> str:
        return (
            "from llama_cpp import Llama\n\n"
            f"model = Llama({json.dumps(f'{folder}/{FILE}')}, n_ctx=0)\n"
            'print(model("Once upon a time", max_tokens=64, temperature=0)["choices"][0]["text"])\n'
            'print(model.create_chat_completion([{"role": "user", "content": "Hello"}], temperature=0))  # if it chats\n\n'
            f"# Ollama:  cd {folder} && ollama create NAME -f Modelfile && ollama run NAME"
        )
