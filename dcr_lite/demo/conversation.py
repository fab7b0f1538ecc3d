"""Conversations: the turns of a client, what each model has said to them, and the messages that a model is given.

They are kept in the memory of a client's session alone; in a file stands no more of them than an answer that is
marked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dcr_lite.data.rows import FOLLOWS
from dcr_lite.demo.prompt_text import cleaned
from dcr_lite.demo.score import Score
from dcr_lite.demo.scoring import MAX_PROMPT_TOKENS
from dcr_lite.demo.slider import Asked
from dcr_lite.errors import UserError
from dcr_lite.model.chat import Message
from dcr_lite.model.thinking import answer_of

MAX_MESSAGES = MAX_PROMPT_TOKENS // 4  # a turn has a few tokens of the template around it, so more would never fit
FORM = "a list of messages, each with the texts role and content"


@dataclass
class Turn:
    """What the user says, and by model what it has answered so far."""

    prompt: str
    scores: dict[str, Score] = field(default_factory=dict)


@dataclass
class Conversation(Asked):
    """The turns of a client so far; ``prompts`` are theirs. system: the prompt of the system for the last answer.
    models: those that there were at the first turn; one that was opened since has no answers to go on from."""

    turns: list[Turn] = field(default_factory=list)
    system: str = ""
    models: tuple[str, ...] = ()

    def begin(self, turns: list[Turn], system: str, position: float | None) -> None:
        """Have these turns; what is being computed for others ends."""
        self.turns, self.system, self.position = turns, system, position
        self.prompts = tuple(turn.prompt for turn in turns)


def messages_for(model: str, turns: Sequence[Turn], system: str) -> list[Message]:
    """The conversation as one model has it: the prompts, and its own answers to those before the last, without what it
    thought before them."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.prompt})
        said = turn.scores[model].answer if model in turn.scores else ""
        messages.append({"role": "assistant", "content": answer_of(said)})
    return messages[:-1]


def checked(messages: Any) -> list[Message]:
    """The messages of a program, cleaned: turns of user and assistant, beginning and ending with the user's, after one
    of the system if there is any. Raises UserError for anything else."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"a conversation is {FORM}")
    if len(messages) > MAX_MESSAGES:
        raise UserError(f"the conversation has {len(messages):,} messages; the limit is {MAX_MESSAGES}. Shorten it.")
    found: list[Message] = []
    for number, message in enumerate(messages, 1):
        try:
            found.append(_checked(message, found[-1]["role"] if found else ""))
        except UserError as error:
            raise UserError(f"message {number} of {len(messages)}: {error}") from None
    if found[-1]["role"] != "user":
        raise UserError("the last message has to be the user's: it is what the model answers")
    return found


def _checked(message: Any, before: str) -> Message:
    """A message that follows one of the role ``before``."""
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise UserError(f"a conversation is {FORM}")
    role, content = message["role"], message["content"]
    expected = FOLLOWS[before]
    if role not in expected:
        raise UserError(f"its role has to be {' or '.join(expected)}, not {role!r:.40}")
    if role == "assistant" and content == "":  # a model may have said nothing
        return {"role": role, "content": content}
    return {"role": role, "content": cleaned(content)}
