"""`peftkit merge --base MODEL --adapter A --out FOLDER`: an adapter of PEFT's format folded into its base."""

from __future__ import annotations

from pathlib import Path

from peftkit.cli.words import Parser, allow_code
from peftkit.errors import ConfigError
from peftkit.registry import did_you_mean

METHODS = (
    *("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd"),
    *("magnitude_prune", "magnitude_prune_svd"),
)
FORMATS = ("auto", "float32", "bfloat16", "float16")
HELD = ("nf4", "fp4")


def run(words: list[str]) -> int:
    """Merge, and say what was done."""
    asked = parser().read(words)
    if asked is None:
        return 0
    for flag, value, known in (
        ("combine", asked.combine, METHODS), ("dtype", asked.dtype, FORMATS), ("quantized", asked.quantized, HELD)
    ):  # fmt: skip
        if value is not None and value not in known:
            raise ConfigError(f"--{flag} {value}{did_you_mean(value, known)}: there are {', '.join(known)}")
    weights = _numbers(asked.weights)
    if weights and len(weights) != len(asked.adapter):
        raise ConfigError(f"--weights {asked.weights}: {len(weights)} for {len(asked.adapter)} adapters")
    if len(asked.adapter) == 1 and (weights or asked.combine):
        raise ConfigError("--combine and --weights are for several adapters; name each with --adapter")
    if asked.density is not None and not 0 < asked.density <= 1:
        raise ConfigError(f"--density {asked.density:g}: a share of the weights that stay, above 0 and at most 1")
    if _prunes(asked.combine) and asked.density is None:
        raise ConfigError(f"--combine {asked.combine} needs --density, the share of the weights that stay")
    from peftkit.flows.merge import merge

    merge(
        asked.base, asked.adapter, asked.out, dtype=asked.dtype, max_shard_size=asked.max_shard_size,
        combine=asked.combine, weights=weights, density=asked.density, rank=asked.rank, seed=asked.seed,
        quantized=asked.quantized, revision=asked.revision, trust=asked.trust,
    )  # fmt: skip
    return 0


def parser() -> Parser:
    made = Parser("merge", "Fold adapters of PEFT's format, made by any tool, into their base, a tensor at a time.")
    made.add_argument("--base", help="folder, .gguf file or hub name (default: the one that the adapter names)")
    made.add_argument("--adapter", required=True, nargs="+", type=Path, metavar="FOLDER", help="one, or several")
    made.add_argument("--out", required=True, type=Path, help="the new folder")
    made.add_argument("--dtype", default="auto", help=f"of the weights: {', '.join(FORMATS)} (default: as the base's)")
    made.add_argument("--max_shard_size", default="5GB", help="largest file of weights (default: 5GB)")
    made.add_argument("--combine", help=f"how several become one, as PEFT does it: {', '.join(METHODS)} (default: cat)")
    made.add_argument("--weights", help="of the adapters: 0.7,0.3 (default: 1 each)")
    made.add_argument(
        "--density", type=float, help="share of the weights that stay, for ties, dare and magnitude_prune"
    )
    made.add_argument("--rank", type=int, help="of the combined adapter, for svd (default: the largest)")
    made.add_argument("--seed", type=int, default=0, help="of what dare draws (default: 0)")
    held = "the base was held in 4 bits in training (default: as the adapter says, if it is peftkit's)"
    made.add_argument("--quantized", help=f"nf4 or fp4: {held}")
    made.add_argument("--revision", help="of a base from the hub")
    allow_code(made)
    return made


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"--weights {text}: numbers with commas between them, 0.7,0.3") from None


def _prunes(method: str | None) -> bool:
    return method is not None and method.startswith(("ties", "dare", "magnitude"))
