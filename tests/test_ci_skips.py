"""In the CI a skipped test fails with its reason; expected failures and passes stay."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]


def test_skips_fail_with_their_reason(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(
        """
        import pytest
        def test_passes(): pass
        def test_skips(): pytest.skip("no such device here")
        @pytest.mark.skip(reason="left out")
        def test_marked(): pass
        @pytest.mark.xfail(reason="known")
        def test_expected(): assert False
        """
    )
    result = pytester.runpytest_subprocess("-p", "tests.ci_skips")
    result.assert_outcomes(passed=1, failed=1, errors=1, xfailed=1)
    result.stdout.fnmatch_lines_random(["*no such device here*", "*left out*"])


def test_a_file_that_skips_itself_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile("import pytest; pytest.importorskip('no_such_module_anywhere')")
    result = pytester.runpytest_subprocess("-p", "tests.ci_skips")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*no_such_module_anywhere*"])
