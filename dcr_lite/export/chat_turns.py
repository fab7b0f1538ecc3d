"""What a chat template writes between the texts of a conversation, read off the template by asking it.

A chat template is a program. Runtimes with templates of their own (Ollama) need what it does in their language. For
nearly every model that is a text before the conversation, one between a prompt and its answer, one between an answer
and the next prompt, and one that asks for an answer. These are found by rendering conversations of marks, and every
conversation that they predict is compared with the template itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcr_lite.errors import UserError, first_line
from dcr_lite.model.chat import knows_system_message, prompt_text

SYSTEM = "SYSTEMMESSAGE"
PROMPTS = ("FIRSTPROMPT", "SECONDPROMPT", "THIRDPROMPT", "FOURTHPROMPT")
ANSWERS = ("FIRSTANSWER", "SECONDANSWER", "THIRDANSWER")
BETWEEN = "\n\n"  # where a template knows no system message, it stands before the first prompt: model/chat.py


@dataclass(frozen=True)
class ChatTurns:
    """The texts around those of a conversation that ends with a prompt.

    start: before the first prompt. start_with_system: before the system message and between it and the first prompt;
    None where it belongs to the last prompt instead. system_in_last: then between it and the last prompt.
    answer: between an earlier prompt and its answer. next: between an answer and the next prompt. ask: after the last
    prompt.
    """

    start: str
    start_with_system: tuple[str, str] | None
    system_in_last: str
    answer: str
    next: str
    ask: str

    def write(self, prompts: Sequence[str], answers: Sequence[str], system: str = "") -> str:
        """A conversation with one prompt more than answers, as these texts have it."""
        if system and self.start_with_system:
            before, behind = self.start_with_system
            text = before + system + behind
        else:
            text = self.start
        for prompt, answer in zip(prompts[:-1], answers, strict=True):
            text += prompt + self.answer + answer + self.next
        if system and not self.start_with_system:
            text += system + self.system_in_last
        return text + prompts[-1] + self.ask


def chat_turns(tokenizer: Any) -> ChatTurns:
    """The texts that a tokenizer's chat template writes. Raises UserError for a template that cannot be told so: its
    texts depend on what is said, or on the number of the turn."""
    prompt_text(tokenizer, PROMPTS[0])  # an error where it has none, or one that fails
    parts = [_render(tokenizer, 3, None)]
    for mark in (PROMPTS[0], ANSWERS[0], PROMPTS[1], ANSWERS[1], PROMPTS[2]):
        parts += parts.pop().split(mark)
    if len(parts) != 6:
        raise _not_expressible(tokenizer, "it writes a prompt or an answer twice, or not at all")
    start, answer, following, _, _, ask = parts
    knows_system = knows_system_message(tokenizer)
    turns = ChatTurns(start, *_around_system(tokenizer, start, knows_system), answer, following, ask)
    for system in (None, SYSTEM) if knows_system else (None,):
        for count in range(1, len(PROMPTS) + 1):
            if turns.write(PROMPTS[:count], ANSWERS[: count - 1], system or "") != _render(tokenizer, count, system):
                under = " with a system message" if system else ""
                raise _not_expressible(tokenizer, f"a conversation of {count} prompts{under} differs from shorter ones")
    return turns


def _not_expressible(tokenizer: Any, why: str) -> UserError:
    return UserError(
        f"{tokenizer.name_or_path}: its chat template cannot be written for Ollama ({why}). Use --to gguf and "
        "llama.cpp's own server, which runs the template itself: llama-server -m FILE.gguf"
    )


def _around_system(tokenizer: Any, start: str, knows_system: bool) -> tuple[tuple[str, str] | None, str]:
    """``start_with_system`` and ``system_in_last``."""
    if not knows_system:
        return (start, BETWEEN), ""
    before, _, behind = _render(tokenizer, 3, SYSTEM).partition(SYSTEM)
    if PROMPTS[0] not in before:
        return (before, behind.partition(PROMPTS[0])[0]), ""
    return None, behind.partition(PROMPTS[2])[0]


def _render(tokenizer: Any, count: int, system: str | None) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    for number in range(count):
        messages.append({"role": "user", "content": PROMPTS[number]})
        if number < count - 1:
            messages.append({"role": "assistant", "content": ANSWERS[number]})
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program in a sandbox: it can fail in any way
        raise _not_expressible(
            tokenizer, f"it fails for a conversation of {count} prompts: {first_line(error)}"
        ) from None
