"""Layers of settings become one run, or one error that names every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.config.read import decisive, read, write
from peftkit.config.run import Run
from peftkit.errors import ConfigError


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        read(words)
    return refused.value.problems


@pytest.fixture
def yaml_file(tmp_path):
    def write_file(text: str, name: str = "run.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


def test_no_words_are_the_defaults():
    assert read() == Run()


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["--strategy", "full"], {"strategy": {"name": "full"}}),
        (["--strategy.name", "full"], {"strategy": "full"}),
        (["--strategy={name: lora, rank: 8}"], {"strategy": {"name": "lora", "rank": 8}}),
        (["--model", "a/b"], {"model": {"path": "a/b"}}),
        (["--data", "x.jsonl"], {"data": {"train": "x.jsonl"}}),
        (["--data", "hub/name:config", "--data.test", "null"], {"data": {"train": "hub/name:config"}}),
        (["--batch=32"], {"batch": {"total": 32}}),
        (["--optim.lr", "2e-5"], {"optim": {"lr": 2e-5}}),
        (["--optim.betas", "0.8", "0.9"], {"optim": {"betas": [0.8, 0.9]}}),
        (["--model.add_tokens", "a", "b"], {"model": {"add_tokens": ["a", "b"]}}),
        (["--model.add_tokens", "a,no,7"], {"model": {"add_tokens": ["a", "no", "7"]}}),
        (["--model.add_tokens", "[a, 'b, c']"], {"model": {"add_tokens": ["a", "b, c"]}}),
        (["--strategy.target_modules", "q_proj,v_proj"], {"strategy": {"target_modules": ["q_proj", "v_proj"]}}),
        (["--strategy.target_modules", "q.{1,2}"], {"strategy": {"target_modules": "q.{1,2}"}}),
        (
            ["--task=causal_lm", "--data=x.csv", "--data.columns", "{text: review}"],
            {"task": "causal_lm", "data": {"train": "x.csv", "columns": {"text": "review"}}},
        ),
        (
            ["--task=causal_lm", "--data=x.csv", "--data.columns.text", "no"],
            {"task": "causal_lm", "data": {"train": "x.csv", "columns": {"text": "no"}}},
        ),
        (["--optim.lr_by_name.layers.0", "1"], {"optim": {"lr_by_name": {"layers.0": 1.0}}}),
        (["--verbose"], {"verbose": True}),
        (["--verbose", "false"], {}),
        (["--verbose", "--no-verbose"], {}),
        (["--no-eval.before"], {"eval": {"before": False}}),
        (["--model.dropout", "null"], {}),
        (["--eval.metrics", "perplexity", "loss"], {"eval": {"metrics": ["perplexity", "loss"]}}),
        (["--local_rank=3"], {}),
        (["--local_rank", "0", "--seed", "7"], {"seed": 7}),
        (["--local-rank=1", "--seed=7"], {"seed": 7}),
        (["--seed", "1", "--seed", "2"], {"seed": 2}),
    ],
    ids=" ".join,
)
def test_words_say(words, same):
    assert read(words) == Run.model_validate(same)


def test_flags_go_before_files_and_files_before_the_base(yaml_file):
    first = yaml_file("optim: {lr: 1e-3}\nseed: 1\nbatch: 8\n", "a.yaml")
    second = yaml_file("seed: 2\n", "b.yaml")
    run = read(
        ["--config", first, "--batch.micro", "2", "--config", second], {"seed": 3, "batch": {"micro": 1}, "steps": 9}
    )
    assert (run.optim.lr, run.seed, run.batch.total, run.batch.micro, run.steps) == (1e-3, 2, 8, 2, 9)


def test_another_choice_starts_its_section_afresh(yaml_file):
    file = yaml_file("strategy: {name: lora, rank: 4}\n")
    assert read(["--config", file, "--strategy", "full"]).strategy.name == "full"
    assert (
        read(["--config", file, "--strategy", "full", "--config", yaml_file("strategy: lora", "b.yaml")]).strategy.name
        == "full"
    )


def test_the_same_choice_keeps_what_lower_layers_say(yaml_file):
    file = yaml_file("strategy: {name: lora, rank: 4}\n")
    run = read(["--config", file, "--strategy", "lora", "--strategy.alpha", "2"])
    assert run.strategy.model_dump() == Run.model_validate({"strategy": {"rank": 4, "alpha": 2}}).strategy.model_dump()


def test_a_choice_left_behind_is_still_spelt_right(yaml_file):
    file = yaml_file("strategy:\n  name: lora\n  rnak: 4\n")
    with pytest.raises(ConfigError, match=r"line 3: strategy\.rnak is no setting; the nearest is strategy\.rank"):
        read(["--config", file, "--strategy", "full"])


def test_epochs_above_take_the_place_of_steps_below(yaml_file):
    run = read(["--config", yaml_file("steps: 10\n"), "--epochs", "2"])
    assert (run.steps, run.epochs) == (None, 2)


def test_scalars_are_those_of_yaml_1_2(yaml_file):
    run = read(["--config", yaml_file("optim: {lr: 2e-5}\nmodel: {add_tokens: [no, on, 1.10, null]}\nout: off\n")])
    assert (run.optim.lr, run.model.add_tokens, run.out) == (2e-5, ["no", "on", "1.10", "null"], Path("off"))


def test_an_empty_section_says_nothing(yaml_file):
    assert read(["--config", yaml_file("model:\noptim:\n# lr: 3\n")]) == Run()


def test_all_mistakes_are_told_at_once(yaml_file):
    file = yaml_file("seed: -1\noptim:\n  lr: fast\n  leyer_decay: 1\n")
    told = problems(
        "--config", file, "--strategy", "loar", "--strategy.rnak", "4", "--batch", "0", "--steps", "3", "--epochs", "1"
    )
    for part in (
        f"{file}, line 1: seed takes a whole number from 0 up; got -1",
        f"{file}, line 3: optim.lr takes a number above 0; got fast",
        f"{file}, line 4: optim.leyer_decay is no setting; the nearest is optim.layer_decay",
        "--strategy: no strategy is named 'loar' (did you mean 'lora'?)",
        "--strategy.rnak is no setting; the nearest is --strategy.rank",
        "--batch takes a whole number above 0; got 0",
        "--steps 3 and --epochs 1 both say when to stop",
    ):
        assert any(text.startswith(part) for text in told), (part, told)
    assert len(told) == 7


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--strategy", "full", "--strategy.dora"], "--strategy.dora belongs to strategy lora, qlora; full was chosen"),
        (["--learning_rate", "1"], "--learning_rate is no setting; the nearest is --optim.lr"),
        (["--rank", "1"], "--rank is no setting; the nearest is --strategy.rank"),
        (["--strat", "lora"], "--strat is no setting; the nearest is --strategy"),
        (["-strategy", "lora"], "-strategy is no setting; the nearest is --strategy"),
        (["--no-verbos"], "--no-verbos is no setting; the nearest is --no-verbose"),
        (["--no-optim.lr"], "--no-optim.lr is for switches alone, and takes no value"),
        (["--no-eval"], "--no-eval is no setting; the nearest is --no-eval.before"),
        (["--optim.lr"], "--optim.lr needs a value: a number above 0"),
        (["--optim.lr", "1", "2"], "--optim.lr takes one value, got 2: 1 2 (quote a value that has spaces)"),
        (["--optim.lr.x", "1"], "--optim.lr.x is no setting; the nearest is --optim.lr"),
        (["--optim.betas", "0.9"], "--optim.betas takes 2 numbers from 0 to below 1; got 0.9"),
        (["--optim.betas", "0.9", "x"], "--optim.betas takes 2 numbers from 0 to below 1; got 0.9 x"),
        (["--optim.lr_by_name.a", "x"], "--optim.lr_by_name.a takes a number above 0; got x"),
        (["--precision", "bf61"], "--precision takes one of auto, fp32, bf16, fp16; got bf61 (did you mean 'bf16'?)"),
        (["--verbose", "maybe"], "--verbose takes true or false; got maybe"),
        (["--model.dropout", "1"], "--model.dropout takes a number from 0 to below 1 or null; got 1"),
        (["--eval", "3"], "--eval is a group of settings: --eval.every, --eval.before, --eval.metrics, ...; got 3"),
        (["--eval"], "--eval is a group of settings: --eval.every, --eval.before, --eval.metrics, ..."),
        (["train"], "'train' stands before any flag: settings are --name value"),
        (["--config"], "--config needs the path of a YAML file"),
        (["--resume"], "--resume needs --out RUN, the folder of the run to go on with"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_refused(words, told):
    assert problems(*words) == [told]


def test_an_unknown_metric_is_named():
    (told,) = problems("--eval.metrics", "loss", "perplexty")
    assert told.startswith("--eval.metrics: no metric is named 'perplexty' (did you mean 'perplexity'?)")


def test_a_wrong_value_hides_the_clashes_that_hang_on_it():
    assert problems("--steps", "x", "--epochs", "2", "--eval.best", "los", "--evl.best", "f1") == [
        "--evl.best is no setting; the nearest is --eval.best",
        "--steps takes a whole number above 0 or null; got x",
    ]


def test_broken_yaml_names_file_line_and_column(yaml_file):
    file = yaml_file("optim:\n  lr: [1\nseed: 3\n")
    (told,) = problems("--config", file)
    assert told.startswith(f"{file}, line 3, column 5: broken YAML")


def test_a_key_given_twice_names_both_lines_and_hides_nothing(yaml_file):
    file = yaml_file("optim:\n  lr: 1\n  lr: 2\nsede: 3\n")
    assert problems("--config", file) == [
        f"{file}, line 3, column 3: lr is given twice (first on line 2)",
        f"{file}, line 4: sede is no setting; the nearest is seed",
    ]


def test_a_missing_file_names_a_near_one(yaml_file):
    file = yaml_file("seed: 3\n", "lora.yaml")
    missing = file.replace("lora", "loar")
    assert problems("--config", missing) == [f"--config {missing} is not there (did you mean '{file}'?)"]


def test_a_dotted_key_is_to_be_nested(yaml_file):
    file = yaml_file("optim.lr: 1\n")
    assert problems("--config", file) == [f"{file}, line 1: optim.lr must be nested in YAML: optim: {{lr: ...}}"]


@pytest.fixture
def begun(tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.yaml").write_text(write(read(["--strategy.rank", "4", "--steps", "100", "--seed", "7"])))
    return str(folder)


def test_a_resumed_run_keeps_its_settings(begun):
    run = read(
        [
            "--resume",
            "--out",
            begun,
            "--epochs",
            "3",
            "--batch.micro",
            "1",
            "--eval.every",
            "5",
            "--no-resume",
            "--resume",
        ]
    )
    assert (run.strategy.model_dump()["rank"], run.seed, run.steps, run.epochs, run.batch.micro) == (4, 7, None, 3, 1)


@pytest.mark.parametrize("said", ["--resume", "--resume=true", "--resume=yes", "--resume=1"])
def test_every_way_to_say_resume_reads_the_folder(begun, said):
    assert read([said, "--out", begun]).seed == 7


def test_a_folder_is_not_read_unless_it_is_resumed(begun):
    assert read(["--out", begun]).seed == read(["--out", begun, "--resume=no"]).seed == 42


def test_a_resumed_run_may_not_learn_something_else(begun):
    told = problems("--resume", "--out", begun, "--strategy.rank", "8", "--seed", "8")
    assert [text.split(",")[0] for text in told] == [
        "--strategy.rank 8 differs from 4",
        "--seed 8 differs from 7",
    ]
    (told_once,) = problems("--resume", "--out", begun, "--strategy", "full")
    assert told_once.startswith("--strategy full differs from lora")


def test_a_resumed_run_may_be_split_otherwise(begun):
    run = read(["--resume", "--out", begun, "--deepspeed", "zero3", "--batch.micro", "1", "--checkpoint.keep", "5"])
    assert (run.deepspeed, run.batch.micro, run.checkpoint.keep) == ("zero3", 1, 5)
    before = read(["--resume", "--out", begun])
    assert decisive(run) == decisive(before), "and is the same run to its checkpoints"
    assert decisive(run) != decisive(run.model_copy(update={"seed": 8}))


def test_a_run_that_has_not_begun_is_resumed_from_nothing(tmp_path):
    assert read(["--resume", "--out", str(tmp_path / "new")]).seed == 42


def test_a_secret_is_not_written_and_a_run_goes_on_without_it(tmp_path):
    said = ["--data.train", "https://me:pass@host/rows.jsonl?token=abc", "--out", str(tmp_path)]
    run = read(said)
    (tmp_path / "config.yaml").write_text(write(run))
    assert "train: https://me:(hidden)@host/rows.jsonl?token=(hidden)" in write(run)
    assert read([*said, "--resume"]).data == run.data
    assert read(["--out", str(tmp_path), "--resume"]).data.train == "https://me:(hidden)@host/rows.jsonl?token=(hidden)"
    with pytest.raises(ConfigError, match=r"--data.train https://me:\(hidden\)@other/ differs") as raised:
        read(["--out", str(tmp_path), "--resume", "--data.train", "https://me:pass@other/"])
    assert "pass@" not in str(raised.value)
