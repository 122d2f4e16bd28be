"""The command: exit codes, what is said where, and how little is imported for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pydantic
import pytest

from peftkit.cli import main as cli
from peftkit.config.flags import families, flags
from peftkit.config.run import Run
from peftkit.errors import ConfigError, ExportError, PeftkitError

ROOT = Path(__file__).parents[2]
CHOICES = [(path, family.registry[name]) for path, family in families(Run) for name in family.registry]
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "peft", "numpy", "accelerate", "sklearn")


def start(*words: str, code: str = "from peftkit.cli.main import main; sys.exit(main())", **environment: str):
    """The command in a process of its own, far from the repository."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", *words],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["train", "--stpes", "3"], ["choices"], ["version"], ["export"]]
)
def test_what_needs_no_model_imports_no_torch(words):
    code = f"from peftkit.cli.main import main; main(); print(sorted(set(sys.modules) & set({HEAVY})), file=sys.stderr)"
    assert start(*words, code=code).stderr.splitlines()[-1] == "[]"


def test_a_settings_error_is_one_line_on_stderr_and_exit_code_2():
    done = start("train", "--stpes", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "peftkit: wrong settings: --stpes is no setting; the nearest is --steps\n"


def test_several_have_a_line_each():
    done = start("train", "--stpes", "3", "--batch", "0")
    assert done.stderr.splitlines() == [
        "peftkit: 2 wrong settings:",
        "  • --stpes is no setting; the nearest is --steps",
        "  • --batch takes a whole number above 0; got 0",
    ]


def test_of_several_processes_only_the_first_speaks():
    assert start("train", "--stpes", "3", RANK="1").stderr == ""
    assert start("train", "--stpes", "3", RANK="1").returncode == 2


@pytest.mark.parametrize("launcher_words", [[], ["--local_rank=0"], ["--local_rank", "0"]])
def test_launch_train_is_the_same_command_without_installation(launcher_words, tmp_path):
    libraries = str(Path(pydantic.__file__).parents[1])
    done = subprocess.run(
        # -S: no .pth files, by which an editable installation would make peftkit importable.
        [sys.executable, "-S", str(ROOT / "launch/train.py"), *launcher_words, "--stpes", "3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": libraries},
    )
    assert (done.returncode, done.stderr) == (
        2,
        "peftkit: wrong settings: --stpes is no setting; the nearest is --steps\n",
    )


def test_a_file_in_launch_shadows_no_library(tmp_path):
    launch = tmp_path / "launch"
    launch.mkdir()
    (launch / "train.py").write_text((ROOT / "launch/train.py").read_text())
    (launch / "yaml.py").write_text("raise RuntimeError('the wrong yaml')")
    done = subprocess.run(
        [sys.executable, str(launch / "train.py"), "--stpes", "3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, "the nearest is --steps" in done.stderr) == (2, True)


def test_python_m_peftkit_is_the_command():
    done = subprocess.run([sys.executable, "-m", "peftkit", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "train" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tain"], "no command 'tain' (did you mean 'train'?)"),
        (["data", "shwo"], "no command 'data shwo' (did you mean 'data show'?)"),
        (["export", "/nowhere"], "/nowhere is no run's folder"),
        (["export"], "required: RUN"),
        (["export", "RUN", "--too", "x"], "did you mean '--to'"),
        (["export", "RUN", "--ch", "3"], "unrecognized arguments: --ch"),
        (["data", "show", "--rows", "no"], "--rows takes a whole number above 0; got no"),
        (["data", "show", "--rosw", "1"], "--rosw is no setting"),
        (["choices", "stratgy"], "did you mean 'strategy'"),
    ],
)
def test_wrong_words_are_refused(words, told, capsys):
    assert cli.main(words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (ConfigError("a is wrong"), 2, "peftkit: wrong settings: a is wrong"),
        (ExportError("it differs"), 1, "peftkit: error: it differs"),
        (PeftkitError("it [b]failed[/b]"), 1, "peftkit: error: it [b]failed[/b]"),
        (KeyboardInterrupt(), 130, "peftkit: interrupted"),
    ],
)
def test_errors_become_exit_codes(problem, code, said, monkeypatch, capsys):
    monkeypatch.setattr(cli, "dispatch", lambda words: (_ for _ in ()).throw(problem))
    assert cli.main([]) == code
    assert capsys.readouterr().err.strip() == said


def fail(words: list[str]) -> int:
    raise TypeError("a fault of ours")


def test_an_unexpected_error_names_the_file_that_has_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli, "dispatch", fail)
    assert cli.main(["train"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("peftkit: unexpected error: TypeError: a fault of ours")
    log = Path(re.search(r"traceback is in (\S+);", told)[1])
    assert "in fail" in log.read_text()
    log.unlink()


def test_verbose_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli, "dispatch", fail)
    assert cli.main(["train", "--verbose"]) == 1
    assert "in fail" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m peftkit train --help | head -1"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


@pytest.mark.parametrize(("path", "choice"), CHOICES, ids=lambda one: getattr(one, "name", None) or ".".join(one))
def test_help_explains_every_setting_of_a_choice_in_80_columns(path, choice, capsys):
    assert cli.main(["train", f"--{path[0]}", choice.name, "--help"]) == 0
    text = capsys.readouterr().out
    shown = set(re.findall(r"^(--[\w.]+)", text, flags=re.MULTILINE))
    assert shown == {flag.word for flag in flags(Run, {path: choice}) if not flag.short}
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text


def test_help_shows_the_docstring_kind_and_default(capsys):
    cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--optim.lr Peak learning rate. a number above 0; default 0.0002" in text


def test_help_helps_whatever_else_is_wrong(capsys):
    assert cli.main(["train", "--strategy", "full", "--batch", "x", "--help", "--config", "/nowhere.yaml"]) == 0
    assert "strategy full" in capsys.readouterr().out


def test_choices_lists_every_registry(capsys):
    assert cli.main(["choices"]) == 0
    text = capsys.readouterr().out
    for path, family in families(Run):
        for name in family.registry:
            assert re.search(rf"^{name}( \(default\))?  +\w", text, flags=re.MULTILINE), (path, name)


def test_a_misspelt_exporter_is_refused_lightly(tmp_path):
    (tmp_path / "config.yaml").touch()
    code = "from peftkit.cli.main import main; main(); print('torch' in sys.modules, file=sys.stderr)"
    told = start("export", str(tmp_path), "--to", "megred", code=code).stderr.splitlines()
    assert told[0].startswith("peftkit: wrong settings: --to: no exporter is named 'megred' (did you mean 'merged'?)")
    assert told[1] == "False"


def test_choices_of_one_family(capsys):
    assert cli.main(["choices", "schedule"]) == 0
    text = capsys.readouterr().out
    assert "cosine (default)" in text
    assert "lora" not in text


def fail_with(problem: Exception) -> int:
    raise problem


@pytest.mark.parametrize("problem", [ConfigError("for {}"), ExportError("for {}"), ConfigError(["for {}", "b"])])
def test_no_message_holds_a_secret_or_steers_the_terminal(problem, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-mine")
    evil = "a-token-of-mine \x1b[2J\x9b2J"
    told = [one.format(evil) for one in getattr(problem, "problems", [str(problem)])]
    monkeypatch.setattr(cli, "dispatch", lambda _: fail_with(type(problem)(told if len(told) > 1 else told[0])))
    assert cli.main(["train"]) == problem.exit_code
    said = capsys.readouterr().err
    assert "for (hidden) \\x1b[2J\\x9b2J" in said
    assert "a-token-of-mine" not in said


def test_nor_does_an_unexpected_error(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-mine")
    monkeypatch.setattr(cli, "dispatch", lambda _: fail_with(ValueError("for a-token-of-mine")))
    for words in (["train"], ["train", "--verbose"]):
        assert cli.main(words) == 1
        said = capsys.readouterr().err
        assert "ValueError: for (hidden)" in said
        assert "a-token-of-mine" not in said
        if log := re.search(r"(/\S+\.log)", said):
            assert "ValueError: for (hidden)" in Path(log[1]).read_text()
            Path(log[1]).unlink()


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_the_versions_are_those_that_are_installed(words, capsys):
    assert cli.main(words) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["pydantic"] == metadata.version("pydantic") and said["torch"] == metadata.version("torch")
