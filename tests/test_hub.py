"""Public data sets: what is asked of the library, and what is said where a set cannot be had."""

import errno
from typing import Any
from unittest.mock import create_autospec

import datasets
import httpx
import pytest

from dcr_lite.data import hub
from dcr_lite.data.public_sets import public_rows
from dcr_lite.errors import UserError


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A load_dataset with the real one's signature, and hosts that answer."""
    loader = create_autospec(datasets.load_dataset)
    loader.return_value = datasets.Dataset.from_list([{"prompt": "a", "other": 1}])
    monkeypatch.setattr(datasets, "load_dataset", loader)
    monkeypatch.setattr(hub, "answers", lambda address: True)
    monkeypatch.setattr(hub, "ask_for_set", lambda name: None)
    return loader


def test_the_rows_are_those_of_the_library(library: Any) -> None:
    """The library is asked for the path, configuration, split and file given."""
    [row] = public_rows("set", "csv", ["prompt"], "", "config", "test", "folder/y.csv")
    assert row == {"prompt": "a", "other": 1}
    library.assert_called_once_with("csv", name="config", data_files="folder/y.csv", split="test")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("no route"), "no route"),
        (ValueError("BuilderConfig 'x' not found"), "BuilderConfig 'x' not found"),
        (RuntimeError("broken"), "broken"),
        (KeyError("features"), "'features'"),
        (httpx.ReadTimeout("too slow"), "the Hub stopped answering: run the same command again later"),
        (datasets.exceptions.DatasetNotFoundError("gone\nfor good"), "gone"),
        (OSError(errno.ENOSPC, "No space left", "/cache/x"), "the disk is full at /cache/x: free some, or set HF_HOME"),
        (PermissionError(errno.EACCES, "denied", "/cache/x"), "/cache/x may not be written: set HF_HOME to a folder"),
    ],
)
def test_a_set_that_cannot_be_loaded_is_an_error(library: Any, error: Exception, reason: str) -> None:
    """Whatever the library raises becomes one line with the set, the true reason and what to do instead."""
    library.side_effect = error
    with pytest.raises(UserError, match=rf"^mine cannot be fetched \({reason}.*\)\. Use another\.$"):
        public_rows("mine", "owner/mine", ["prompt"], "Use another.")


def test_changed_columns_are_an_error(library: Any) -> None:
    """A set without a column that is needed is an error that names the columns found, not rows of nothing."""
    with pytest.raises(UserError, match=r"^mine has changed: no column kind among prompt, other\. Use another\.$"):
        public_rows("mine", "owner/mine", ["prompt", "kind"], "Use another.")


@pytest.mark.parametrize(
    ("file", "host"), [(None, "huggingface.co"), ("https://raw.githubusercontent.com/a/b.csv", "githubusercontent.com")]
)
@pytest.mark.parametrize("offline", [True, False])
def test_an_unreachable_host_is_an_error(
    file: str | None, host: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that does not answer is named without a password in its address; with HF_HUB_OFFLINE none is asked, and
    the variable is named."""

    def refuse(address: str, **kwargs: Any) -> None:
        assert not offline
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(httpx, "head", refuse)
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@huggingface.co")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    said = rf"HF_HUB_OFFLINE is set: unset it to ask \S*{host}" if offline else rf"\S*{host} does not answer"
    with pytest.raises(UserError, match=rf"mine cannot be fetched \((?!.*secret){said}\)\. Use another\."):
        public_rows("mine", "owner/mine", ["prompt"], "Use another.", file=file)
