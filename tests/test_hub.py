"""What is said of a public data set that cannot be had; what a Hub does to it is in test_real_sets.py."""

import errno

import pytest

from dcr_lite.data import hub


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("gone\nfor good"), "gone"),
        (
            OSError(errno.ENOSPC, "No space left", "/cache/x"),
            "the disk is full at /cache/x: free some, or set HF_HOME to another one",
        ),
        (
            PermissionError(errno.EACCES, "denied", "/cache/x"),
            "/cache/x may not be written: set HF_HOME to a folder that may",
        ),
    ],
)
def test_a_fault_of_this_machine_is_named(error: Exception, reason: str) -> None:
    """With its cure; anything else that a library raises by the first line of what it says."""
    assert hub.why(error, "datasets/owner/mine") == reason
