"""What a person says of an answer: two buttons under it, whose marks dcr-lite mend reads (data/marks.py)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from dcr_lite.data.marks import Mark, Wanted, append_mark
from dcr_lite.demo import markup, texts
from dcr_lite.demo.score import Score
from dcr_lite.demo.slider import NO_WORK, Asked
from dcr_lite.errors import sentence


class MarkButtons:
    """The buttons under one answer box, and what became of a press; nothing to see where no marks are kept.

    They work while a whole answer is shown. The page keeps the prompt of that answer beside it and sends it along: what
    is marked is what is seen, whatever has been typed or computed since.

    marks: the file. titles: of the models, with their runs. name: of the answer box. asked: the client's Asked.
    outputs: the parts that ``closed`` and ``whole`` change.
    """

    def __init__(self, marks: Path | None, titles: Mapping[str, str], name: str, asked: Any):
        self._marks, self._titles, self._name = marks, titles, name
        self.outputs: list[Any] = []
        if marks is None:
            return
        with gr.Row(elem_classes="inset"):
            self._buttons = [
                gr.Button(
                    texts.SHOULD[wanted], size="sm", min_width=120, interactive=False, elem_id=f"should-{wanted}-{name}"
                )
                for wanted in get_args(Wanted)
            ]
        self._prompt = gr.Textbox(label=texts.PROMPT_OF_ANSWER, visible="hidden")
        self._status = gr.HTML(markup.status(""), elem_id=f"marked-{name}")
        self.outputs = [*self._buttons, self._prompt, self._status]
        for wanted, button in zip(get_args(Wanted), self._buttons, strict=True):
            button.click(
                lambda asked, prompt, wanted=wanted: self.mark(wanted, asked, prompt),
                [asked, self._prompt], self._status, show_progress="hidden", **NO_WORK,
            )  # fmt: skip

    def closed(self, asked: Asked) -> dict[Any, Any]:
        """What changes when another answer begins."""
        asked.whole.pop(self._name, None)
        return self._changes(False, "") | ({self._status: markup.status("")} if self.outputs else {})

    def whole(self, asked: Asked, score: Score) -> dict[Any, Any]:
        """What changes when an answer has ended."""
        asked.whole[self._name] = score
        return self._changes(True, score.prompt)

    def _changes(self, works: bool, prompt: str) -> dict[Any, Any]:
        if not self.outputs:
            return {}
        # With their texts: the page loses them where a prompt is sent while the answers to another still grow.
        buttons = {
            button: gr.Button(texts.SHOULD[wanted], interactive=works)
            for wanted, button in zip(get_args(Wanted), self._buttons, strict=True)
        }
        return buttons | {self._prompt: prompt}

    def mark(self, wanted: Wanted, asked: Asked, prompt: str) -> str:
        """Keep a mark of the answer that is shown, to ``prompt``; returns what is said of it."""
        score = asked.whole.get(self._name)
        if self._marks is None or score is None or score.prompt != prompt:
            return markup.status(texts.NOT_MARKED)
        try:
            append_mark(self._marks, Mark(prompt, wanted, score.answer, self._titles[score.model]))
        except Exception as error:
            if (said := sentence(error, texts.MARK_AGAIN)) is None:
                raise
            return markup.status(said)
        return markup.status(texts.MARKED.format(should=texts.SHOULD[wanted]), done=True)
