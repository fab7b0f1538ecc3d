"""The tab for a conversation under a system prompt: each model has its own, side by side, and all are asked at once.

Turns are shown as escaped HTML: gr.Chatbot would read them as HTML, and change their white space, even where it is told
to render no Markdown.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dcr_lite.demo import markup, texts
from dcr_lite.demo.conversation import Conversation, Turn, messages_for
from dcr_lite.demo.marking import MarkButtons
from dcr_lite.demo.prompt_text import cleaned
from dcr_lite.demo.score import Score
from dcr_lite.demo.scoring import CHAT_TOKENS, OpenRun
from dcr_lite.demo.slider import AT_ANY_TIME, MODEL_WORK, NO_WORK, DialSlider
from dcr_lite.demo.tabs import user_errors_shown
from dcr_lite.model.chat import knows_system_message
from dcr_lite.names import MENDED

Streams = dict[str, Generator[Score, None, None]]  # by model
UNSEEN: dict[str, Any] = {"show_progress": "hidden"}  # answers grow, which shows enough


class ChatTab:
    """A system prompt, turns, and for each model its conversation with the verdict on its last answer. beside: the
    column of MENDED, which is seen once that is open, and heading the head of it. marks: the file for marks of answers
    to a first turn without a system prompt, since what is mended are prompts that stand alone."""

    def __init__(self, run: OpenRun, marks: Path | None = None):
        self.run, self.best = run, run.names[0]
        self.system = gr.Textbox(label=texts.SYSTEM, lines=1, max_lines=6, elem_id="system")
        with gr.Row():
            self.prompt = gr.Textbox(
                label=texts.TURN, placeholder=texts.EXAMPLE_TURN, lines=1, max_lines=6, scale=5, elem_id="turn"
            )
            send = gr.Button(texts.SEND, variant="primary", scale=1, min_width=110, elem_id="send")
        with gr.Row():
            buttons = [gr.Button(title, size="sm", min_width=130) for title in (texts.UNDO, texts.RETRY, texts.CLEAR)]
            undo, retry, clear = buttons
            example = gr.Button(texts.EXAMPLE, size="sm", min_width=130)
        self.verdicts: dict[str, Any] = {}
        self.talks: dict[str, Any] = {}
        self.marks: dict[str, MarkButtons] = {}
        self.dial = DialSlider(run, "chat", Conversation())
        with gr.Row():
            for name in dict.fromkeys((*run.names, MENDED)):
                with gr.Column(min_width=250, visible=name in run.names) as self.beside:
                    self.heading = gr.HTML(markup.model_heading(name), elem_id=f"chat-heading-{name}")
                    self.verdicts[name] = gr.HTML(_verdict(name, []), elem_id=f"chat-verdict-{name}")
                    self.talks[name] = gr.HTML(_talk(name, []), elem_id=f"chat-{name}")
                    self.marks[name] = MarkButtons(marks, run.titles, f"chat-{name}", self.dial.asked)
        place = "" if knows_system_message(run.model.tokenizer) else f" {texts.SYSTEM_BEFORE_PROMPT}"
        marked = f" {texts.CHAT_MARKS}" if marks else ""
        gr.HTML(markup.box(f"<p>{texts.CHAT_NOTE.format(tokens=CHAT_TOKENS)}{place}{marked}</p>"))

        said = [*self.verdicts.values(), *self.talks.values()]
        said += [part for buttons in self.marks.values() for part in buttons.outputs]
        state, position = self.dial.asked, self.dial.positions
        inputs = [self.prompt, self.system, state, *position]
        gr.on([self.prompt.submit, send.click], self.sent, inputs, [self.prompt, *said], **AT_ANY_TIME | UNSEEN)
        retry.click(self.retried, [self.system, state, *position], said, **AT_ANY_TIME | UNSEEN)
        undo.click(self.undone, state, [self.prompt, *said], **NO_WORK)
        clear.click(self.cleared, state, said, **NO_WORK)
        self.dial.when_moved(self.turned, said, **MODEL_WORK | UNSEEN)
        example.click(self.example_sent, [state, *position], [self.system, *said], **AT_ANY_TIME | UNSEEN)

    # --- what events call: none may have the name of an endpoint ------------------------------------------------------

    def sent(
        self, prompt: str, system: str, talk: Conversation, position: float | None = None
    ) -> Iterator[dict[Any, Any]]:
        """What to show of a further turn, as the models answer it."""
        with user_errors_shown():
            turns = [*talk.turns, Turn(cleaned(prompt))]
            yield from self._answered(turns, system, talk, position, {self.prompt: ""})

    def retried(self, system: str, talk: Conversation, position: float | None = None) -> Iterator[dict[Any, Any]]:
        """What to show of the last turn, asked again."""
        if not talk.turns:
            yield self._shown(talk)  # Gradio empties the outputs of an event that ends without anything
        else:
            with user_errors_shown():
                turns = [*talk.turns[:-1], Turn(talk.turns[-1].prompt)]
                yield from self._answered(turns, system, talk, position, {})

    def turned(self, talk: Conversation, position: float) -> Iterator[dict[Any, Any]]:
        """What to show of the best model's last answer when the dial was turned."""
        prompts = talk.prompts  # first: whatever the client sends from here on, these are others
        turns, system = talk.turns, talk.system
        if turns:
            with user_errors_shown():
                streams = self._streams([self.best], turns, system, position)
                if talk.prompts is prompts and (closed := self.marks[self.best].closed(talk)):
                    yield closed
                yield from self._grow(streams, turns, system, prompts, talk, position)

    def undone(self, talk: Conversation) -> dict[Any, Any]:
        """Without the last turn, whose prompt comes back to be changed."""
        if not talk.turns:
            return self._shown(talk)
        *before, last = talk.turns
        talk.begin(before, talk.system, talk.position)
        return self._shown(talk) | {self.prompt: last.prompt}

    def cleared(self, talk: Conversation) -> dict[Any, Any]:
        """Without any turn."""
        talk.begin([], talk.system, talk.position)
        return self._shown(talk)

    def example_sent(self, talk: Conversation, position: float | None = None) -> Iterator[dict[Any, Any]]:
        """What to show of the example, whose turns are sent one after the other."""
        turns: list[Turn] = []
        for prompt in texts.EXAMPLE_TURNS:
            if turns and talk.turns is not turns:
                return  # the client has gone on by itself
            turns = [*turns, Turn(prompt)]
            first = {self.system: texts.EXAMPLE_SYSTEM}
            with user_errors_shown():
                yield from self._answered(turns, texts.EXAMPLE_SYSTEM, talk, position, first)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answered(
        self, turns: list[Turn], system: str, talk: Conversation, position: float | None, first: dict[Any, Any]
    ) -> Iterator[dict[Any, Any]]:
        """What to show while the conversation's models answer the last of ``turns``, which become its turns where they
        fit; ``first`` as well."""
        system = cleaned(system) if (system or "").strip() else ""
        position = talk.newest(position)
        models = talk.models if len(turns) > 1 else self.run.names
        streams = self._streams(models, turns, system, position)
        talk.begin(turns, system, position)
        talk.models = models
        prompts = talk.prompts  # before anything is shown, whereupon the client may ask for something else
        yield self._shown(talk) | first
        yield from self._grow(streams, turns, system, prompts, talk, position)

    def _streams(self, names: Sequence[str], turns: list[Turn], system: str, position: float | None) -> Streams:
        """Raises UserError where a conversation is too long, or none that its model can have."""
        strength = self.dial.strength(position)
        return {
            name: self.run.converse(
                name, messages_for(name, turns, system), strength=strength if name == self.best else None
            )
            for name in names
        }

    def _grow(
        self, streams: Streams, turns: list[Turn], system: str, prompts: tuple[str, ...], talk: Conversation,
        position: float | None,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        """What to show while answers to the last of ``turns`` grow, of each model in turn; what is whole can be marked
        where its prompt stands alone. One ends early where the client has asked for anything but ``prompts`` since, or
        moved its slider; all do when it goes away."""
        with ExitStack() as open_streams:
            for stream in streams.values():
                open_streams.enter_context(closing(stream))
            while streams:
                for name, stream in list(streams.items()):
                    score = next(stream, None)
                    moved = name == self.best and not talk.wants(prompts, position)
                    if score is None or moved or talk.prompts is not prompts:
                        stream.close()
                        del streams[name]
                        continue
                    turns[-1].scores[name] = score
                    shown = {self.verdicts[name]: _verdict(name, turns), self.talks[name]: _talk(name, turns)}
                    if score.kind is not None and len(turns) == 1 and not system:
                        shown |= self.marks[name].whole(talk, score)
                    yield shown

    def _shown(self, talk: Conversation) -> dict[Any, Any]:
        shown: dict[Any, Any] = {}
        for name in self.run.names:
            turns = talk.turns if name in talk.models else []
            shown |= {self.verdicts[name]: _verdict(name, turns), self.talks[name]: _talk(name, turns)}
            shown |= self.marks[name].closed(talk)
        return shown


def _verdict(name: str, turns: list[Turn]) -> str:
    """On the model's last answer."""
    if not turns:
        return markup.empty(texts.NO_MODEL_VERDICT_YET)
    score = turns[-1].scores.get(name)
    return markup.verdict(score, small=True) if score else markup.empty(texts.QUEUED)


def _talk(name: str, turns: list[Turn]) -> str:
    """A model's conversation, for the keyboard to scroll."""
    said = ""
    for turn in turns:
        score = turn.scores.get(name)
        for who, text in (("you", turn.prompt), ("model", score.answer if score else "")):
            said += f'<div class="turn {who}"><b>{texts.SAYS[who]}</b>{escape(text)}</div>'
    label = texts.TALK_OF[name]
    opening = f'<div class="dcr talk" role="log" aria-live="off" aria-label="{label}" tabindex="0">'
    return f'{opening}<div class="turns">{said}</div></div>'
