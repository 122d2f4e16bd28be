"""A LoRA adapter merged into its base: `peftkit merge` against PEFT's `merge_and_unload` with `save_pretrained`, and mergekit.

python tests/bench/merge.py [--turns 3] [--lock FILE] [--runners peftkit,peft,mergekit]

The base is a Llama of 1.1 billion parameters in bf16, in five shards, with an adapter of rank 16 on all its linear layers,
both made on the spot from a seed. CPU seconds and peak memory are the whole process's, of one thread, from its start to its
end, imports and, for peftkit, the base's sha256 included. All that was written is compared with what PEFT wrote, bit by bit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.measure import Cost, ratio, run, spread  # noqa: E402
from tests.bench.race import locked, machine  # noqa: E402
from tests.bench.workloads import CACHE  # noqa: E402

PLACE = CACHE / "merge"
MERGEKIT = "python -m venv {0}; {0}/bin/pip install torch==2.13.0; {0}/bin/pip install mergekit==0.1.5 torch==2.13.0"
SHAPE = {
    "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "intermediate_size": 5632, "vocab_size": 32000,
}  # fmt: skip
WANTED = (0.3, 0.17)
"""Of PEFT's CPU time and of its peak memory."""


def main(words: Sequence[str]) -> None:
    # In processes of their own: what this one holds would count as theirs.
    if words[:1] == ["make"]:
        make(PLACE)
    elif words[:1] == ["peft"]:
        merge_by_peft(*map(Path, words[1:]))
    elif words[:1] == ["compare"]:
        compare(*map(Path, words[1:]))
    else:
        measure(parse(words))


def measure(asked: argparse.Namespace) -> None:
    if not (PLACE / "adapter" / "adapter_config.json").is_file():
        again("make")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    costs: dict[str, list[Cost]] = {name: [] for name in asked.runners.split(",")}
    for turn in range(asked.turns):
        for name, held in costs.items():
            shutil.rmtree(PLACE / name, ignore_errors=True)
            shutil.rmtree(PLACE / "cache", ignore_errors=True)
            with locked(asked.lock):
                held.append(run(RUNNERS[name](PLACE / name), PLACE / f"{name}.log", Path(os.devnull)))
            print(f"  {turn + 1} {name}: {held[-1].cpu:.1f} CPU s, {held[-1].peak_mb:.0f} MB", file=sys.stderr)
    print("\n".join(told(costs, asked.turns)), flush=True)
    for name in costs:
        if name != "peft" and "peft" in costs:
            again("compare", str(PLACE / name), str(PLACE / "peft"))
    for name in costs:
        shutil.rmtree(PLACE / name)  # two gigabytes each


def parse(words: Sequence[str]) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--turns", type=int, default=3)
    made.add_argument("--lock", type=Path, help="a file that is locked during each run")
    made.add_argument("--runners", default="peftkit,peft,mergekit")
    return made.parse_args(words)


def again(*words: str) -> None:
    subprocess.run([sys.executable, __file__, *words], check=True)


def peftkit(out: Path) -> list[str]:
    os.environ["PEFTKIT_CACHE"] = str(PLACE / "cache")  # no digest is remembered from an earlier turn
    words = ["--base", f"{PLACE}/base", "--adapter", f"{PLACE}/adapter", "--out", str(out)]
    return [sys.executable, "-m", "peftkit", "merge", *words]


def peft(out: Path) -> list[str]:
    return [sys.executable, __file__, "peft", f"{PLACE}/base", f"{PLACE}/adapter", str(out)]


def mergekit(out: Path) -> list[str]:
    folder = CACHE / "venvs" / "mergekit"
    if not folder.exists():
        raise SystemExit(f"no {folder}: {MERGEKIT.format(folder)}")
    recipe = PLACE / "mergekit.yaml"
    recipe.write_text(f"merge_method: passthrough\ndtype: bfloat16\nmodels:\n  - model: {PLACE}/base+{PLACE}/adapter\n")
    return [str(folder / "bin" / "mergekit-yaml"), str(recipe), str(out), "--lora-merge-cache", f"{PLACE}/cache"]


RUNNERS: dict[str, Callable[[Path], list[str]]] = {"peftkit": peftkit, "peft": peft, "mergekit": mergekit}


def told(costs: dict[str, list[Cost]], turns: int) -> list[str]:
    """The table of RESULTS.md."""
    lines = [
        f"{machine()}, one thread, {turns} turn(s)", "",
        "| runner | CPU s | peak MB | wall s | peftkit's CPU time | wanted | peftkit's memory | wanted |",
        "| --- |" + " --- |" * 7,
    ]  # fmt: skip
    for name, held in costs.items():
        cells = [name, *(spread([getattr(one, kind) for one in held]) for kind in ("cpu", "peak_mb", "wall"))]
        wanted = [f"{one:g}" if name == "peft" else "" for one in WANTED]
        ratios = ["", ""] if name == "peftkit" else [ratio(costs["peftkit"], held, kind) for kind in ("cpu", "peak_mb")]
        lines.append(f"| {' | '.join([*cells, ratios[0], wanted[0], ratios[1], wanted[1]])} |")
    return lines


def make(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="500MB")
    config = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(model, config).save_pretrained(folder / "adapter")


def merge_by_peft(base: Path, adapter: Path, out: Path) -> None:
    """As PEFT's documentation has it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)


def compare(ours: Path, theirs: Path) -> None:
    """Print how many tensors of the two folders are the same, bit by bit."""
    import torch
    from safetensors import safe_open

    def places(folder: Path) -> dict[str, Path]:
        files = sorted(folder.glob("*.safetensors"))
        return {name: file for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118

    one, other = places(ours), places(theirs)
    same = sum(
        torch.equal(safe_open(one[name], "pt").get_tensor(name), safe_open(other[name], "pt").get_tensor(name))
        for name in one.keys() & other.keys()
    )
    print(
        f"{ours.name} and {theirs.name}: {same} of {len(one.keys() | other.keys())} tensors are the same to the last bit"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
