"""The command dcr-lite, run in this process."""

import pytest

from dcr_lite import cli


def run_command(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    """The exit status of dcr-lite with these words."""
    monkeypatch.setattr("sys.argv", ["dcr-lite", *map(str, argv)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
