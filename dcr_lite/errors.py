"""Errors that a user can fix are one-line messages, never tracebacks."""


class UserError(Exception):
    """An error that its reader can fix: the message names the place (file and line) and the cure."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
