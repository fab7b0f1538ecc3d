"""The command dcr-lite, run in this process."""

import io
from contextlib import redirect_stderr, redirect_stdout

import pytest
from small_runs import Outcome

from dcr_lite import cli


def run_command(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    """The exit status of dcr-lite with these words."""
    monkeypatch.setattr("sys.argv", ["dcr-lite", *map(str, argv)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def dcr_lite(*words: object) -> Outcome:
    """What the user of a command sees."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        code = run_command(patch, *words)
    return Outcome(code, out.getvalue(), err.getvalue())
