"""Chatter lands in the log, down to C; what is ours and what went wrong reaches the user; and all is as before afterwards."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from peftkit.tracking.console import Console
from peftkit.tracking.quiet import chatter_to, is_active, log_of, terminal

CHATTER = """
import ctypes, logging, os, subprocess, sys, warnings
from pathlib import Path
from peftkit.tracking import Console, chatter_to

early = logging.getLogger("early")
early.propagate = False
early.addHandler(logging.StreamHandler(sys.stdout))
keeper = logging.getLogger("transformers")
keeper.propagate = False
keeper.addHandler(logging.StreamHandler())
old_out = sys.stdout
console = Console()

def chatter():
    print("by print")
    print("to the stdout of before", file=old_out)
    os.write(1, b"to descriptor 1\\n")
    os.write(2, b"to descriptor 2\\n")
    ctypes.CDLL(None).puts(b"by C")
    subprocess.run(["echo", "by a child"])
    warnings.warn("a warning")
    early.warning("logged by an old handler")
    logging.getLogger("late").warning("logged without a handler")
    late = logging.StreamHandler()
    logging.getLogger("later").addHandler(late)

with chatter_to(Path(sys.argv[1]) if sys.argv[1] else None, verbose="verbose" in sys.argv):
    chatter()
    console.note("ours")
    logging.getLogger("late").error("an error")
    keeper.error("another error")
    if "fail" in sys.argv:
        raise RuntimeError("failed inside")
    if "crash" in sys.argv:
        os.abort()
print("after")
early.warning("early after")
logging.getLogger("later").warning("later after")
"""
SAID = [
    "by print",
    "to the stdout of before",
    "to descriptor 1",
    "to descriptor 2",
    "by C",
    "by a child",
    "a warning",
    "logged by an old handler",
    "logged without a handler",
]


def start(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHATTER), *words], capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def quiet_run(tmp_path_factory):
    log = tmp_path_factory.mktemp("run") / "logs" / "process-0.log"
    done = start(str(log))
    return done, log.read_text()


@pytest.mark.parametrize("said", SAID)
def test_chatter_is_in_the_log_alone(quiet_run, said):
    done, log = quiet_run
    assert said in log
    assert said not in done.stdout + done.stderr


def test_what_is_ours_is_on_stdout_alone_and_everything_is_afterwards(quiet_run):
    done, log = quiet_run
    assert (done.returncode, done.stdout) == (0, "ours\nafter\nearly after\n")
    assert "ours" not in log


def test_errors_are_in_both_and_once_on_stderr(quiet_run):
    done, log = quiet_run
    assert done.stderr.splitlines() == ["late: an error", "transformers: another error", "later after"]
    assert "an error" in log
    assert "another error" in log


def test_verbose_changes_nothing(tmp_path):
    done = start(str(tmp_path / "log"), "verbose")
    assert [said for said in SAID if said not in done.stdout + done.stderr] == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_log_chatter_is_dropped():
    assert start("").stdout == "ours\nafter\nearly after\n"


def test_an_exception_leaves_its_traceback_in_the_log(tmp_path):
    done = start(str(tmp_path / "log"), "fail")
    assert "RuntimeError: failed inside" in (tmp_path / "log").read_text()
    assert "RuntimeError: failed inside" in done.stderr


def test_a_crash_in_c_still_shows_where(tmp_path):
    done = start(str(tmp_path / "log"), "crash")
    assert done.returncode < 0
    assert "Fatal Python error: Aborted" in done.stderr


def test_it_works_where_stdout_is_no_file(tmp_path, capsys):
    console = Console()
    with chatter_to(tmp_path / "log"):
        assert is_active()
        print("by print")
        console.note("ours")
        terminal().write("and ours\n")
    print("after")
    assert not is_active()
    assert capsys.readouterr().out == "ours\nand ours\nafter\n"
    assert (tmp_path / "log").read_text() == "by print\n"


def test_it_nests(tmp_path, capsys):
    with chatter_to(tmp_path / "outer"):
        with chatter_to(tmp_path / "inner"):
            print("inner")
        print("outer")
    assert capsys.readouterr().out == ""
    assert [(tmp_path / name).read_text() for name in ("outer", "inner")] == ["outer\n", "inner\n"]


def test_the_log_of_an_error_is_known(tmp_path):
    def fail() -> None:
        with chatter_to(tmp_path / "log"):
            raise ValueError("here")

    with pytest.raises(ValueError, match="here") as raised:
        fail()
    assert log_of(raised.value) == tmp_path / "log"
    assert log_of(ValueError("here")) is None


def test_warnings_that_tests_catch_are_still_caught(tmp_path):
    with warnings.catch_warnings(record=True) as caught, chatter_to(Path(tmp_path / "log")):
        warnings.simplefilter("always")
        warnings.warn("caught", stacklevel=1)
    assert [str(one.message) for one in caught] == ["caught"]


TELL = """
import ctypes, logging, os, subprocess, sys
from pathlib import Path
from peftkit.tracking.quiet import chatter_to

token = os.environ["HF_TOKEN"]
with chatter_to(Path(sys.argv[1])):
    print("by print", token)
    os.write(2, f"to a descriptor {token}\\n".encode())
    subprocess.run(["echo", "by a child", token])
    logging.getLogger("hub").error("401 for %s", token)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
    raise RuntimeError(f"refused: {token}")
"""


def test_no_secret_of_the_environment_is_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-mine")
    log = tmp_path / "logs" / "process-0.log"
    told = [
        subprocess.run([sys.executable, "-c", TELL, log, "killed"], capture_output=True, text=True, timeout=60).stderr
    ]
    told.append(
        subprocess.run([sys.executable, "-c", TELL, log, ""], capture_output=True, text=True, timeout=60).stderr
    )
    assert "hub: 401 for (hidden)" in told[0]
    assert "hub: 401 for (hidden)" in told[1]
    assert "a-token-of-mine" not in told[0]
    text = log.read_text()
    assert "a-token-of-mine" not in text
    for said in (
        "by print (hidden)",
        "to a descriptor ****",
        "by a child ****",
        "401 for (hidden)",
        "RuntimeError: refused: (hidden)",
    ):
        assert said in text
    assert text.count("by print") == 2
