"""What a user can mend is said in a sentence, never in a traceback."""


class UserError(Exception):
    """A mistake that its reader can mend: the message names the place (file and line) and the cure."""
