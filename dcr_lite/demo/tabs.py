"""The three tabs of the page: one prompt, a pair, a list. Each lays out its parts; ``results`` fills them.
Its name must not be that of an API endpoint: Gradio would rename the latter.

Prompts and answers are shown in plain text boxes or escaped; they are never read as HTML or Markdown.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from dcr_lite.data.rows import Pair
from dcr_lite.demo import markup, texts
from dcr_lite.demo.marking import MarkButtons
from dcr_lite.demo.prompt_list import read_prompt_file, read_prompt_list, score_row, write_scores
from dcr_lite.demo.score import Score
from dcr_lite.demo.scoring import OpenRun
from dcr_lite.demo.slider import AT_ANY_TIME, MODEL_WORK, NO_WORK, Asked, DialSlider
from dcr_lite.errors import UserError
from dcr_lite.names import MENDED


@contextmanager
def user_errors_shown() -> Iterator[None]:
    """Within the block a UserError becomes a message on the page. Gradio reads messages as HTML, so it is escaped."""
    try:
        yield
    except UserError as error:
        message = str(error)
        raise gr.Error(escape(message[:1].upper() + message[1:]), duration=None, print_exception=False) from None


class OnePromptTab:
    """One prompt: verdict, similarity, words and map of the best model, and the answers of all side by side.
    beside: the column of MENDED, which is seen once that is open, and heading the head of it."""

    def __init__(self, run: OpenRun, pairs: list[Pair], marks: Path | None):
        self.run, self.best = run, run.names[0]
        with gr.Row():
            prompt = gr.Textbox(
                label=texts.PROMPT, placeholder=texts.EXAMPLE_PROMPT, lines=1, max_lines=6, scale=5, autofocus=True,
                elem_id="prompt",
            )  # fmt: skip
            ask = gr.Button(texts.ASK, variant="primary", scale=1, min_width=110, elem_id="ask")
        with gr.Accordion(texts.PAIRS_TO_TRY, open=True):
            examples = [button for pair in pairs for button in self._buttons(pair)]
        self.dial = DialSlider(run, "one")
        with gr.Row():
            with gr.Column(min_width=300):
                self.verdict = _placeholder(texts.NO_VERDICT_YET, "decision")
                self.similarity = _placeholder(texts.NO_SIMILARITY_YET, "similarity")
                self.words = _placeholder(texts.NO_WORDS_YET, "words")
            with gr.Column(min_width=300):
                self.map = _placeholder(texts.NO_MAP_YET, "map")
        self.verdicts: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self.marks: dict[str, MarkButtons] = {}
        with gr.Row():
            for name in dict.fromkeys((*run.names, MENDED)):
                with gr.Column(min_width=250, visible=name in run.names) as self.beside:
                    self.heading = gr.HTML(markup.model_heading(name), elem_id=f"heading-{name}")
                    self.verdicts[name] = _placeholder(texts.NO_MODEL_VERDICT_YET, f"verdict-{name}")
                    self.answers[name] = _answer_box(texts.ANSWER_OF[name], f"answer-{name}")
                    self.marks[name] = MarkButtons(marks, run.titles, name, self.dial.asked)

        outputs = [self.verdict, self.similarity, self.words, self.map]
        outputs += [*self.verdicts.values(), *self.answers.values()]
        outputs += [part for buttons in self.marks.values() for part in buttons.outputs]
        scroll = (files("dcr_lite.demo") / "page.js").read_text(encoding="utf-8")
        inputs = [prompt, self.dial.asked, *self.dial.positions]
        shown = {"show_progress_on": self.verdict}
        how = AT_ANY_TIME | shown
        gr.on([prompt.submit, ask.click], self.results, inputs, outputs, js=scroll, **how)
        for button in examples:
            chosen = button.click(lambda text: text, button, prompt, **NO_WORK)
            chosen.then(self.results, inputs, outputs, js=scroll, **how)
        self.dial.when_moved(self.turned, outputs, **MODEL_WORK | shown)

    @staticmethod
    def _buttons(pair: Pair) -> list[Any]:
        with gr.Row(elem_classes="pair"):
            return [gr.Button(text, size="sm", elem_classes="example") for text in (pair.toxic, pair.seemingly_toxic)]

    def results(self, prompt: str, asked: Asked, position: float | None = None) -> Iterator[dict[Any, Any]]:
        """What to show of a prompt, as it becomes known: the best model first, then the others in their columns."""
        prompts, position = (prompt,), asked.newest(position)
        _require(self.run, prompts)
        asked.prompts, asked.position = prompts, position
        cleared: dict[Any, Any] = {}
        for name in self.run.names:
            cleared |= {self.answers[name]: "", self.verdicts[name]: markup.empty(texts.QUEUED)}
            cleared |= self.marks[name].closed(asked)
        with user_errors_shown():
            yield from self._grow(asked, self.dial.stream(prompt, True, asked, position), cleared)
            for name in self.run.names[1:]:
                if asked.prompts is not prompts:
                    return
                for changes in self._grow(asked, self.run.stream(name, prompt, words=False)):
                    if asked.prompts is not prompts:
                        return
                    yield changes

    def turned(self, asked: Asked, position: float) -> Iterator[dict[Any, Any]]:
        """What to show of the best model when the dial was turned."""
        with user_errors_shown():
            for prompt in asked.prompts:
                closed = self.marks[self.best].closed(asked)
                yield from self._grow(asked, self.dial.stream(prompt, True, asked, position), closed)

    def _grow(
        self, asked: Asked, scores: Iterator[Score], first: dict[Any, Any] | None = None
    ) -> Iterator[dict[Any, Any]]:
        """The changes from score to score; ``first`` come with those of the first."""
        changes, shown = first or {}, None
        for score in scores:
            changes |= self._changes(shown, score)
            if score.kind is not None:
                changes |= self.marks[score.model].whole(asked, score)
            if changes:
                yield changes
            changes, shown = {}, score

    def _changes(self, shown: Score | None, score: Score) -> dict[Any, Any]:
        """What differs from ``shown``: only that is sent."""
        changes: dict[Any, Any] = {}
        if shown is None or shown.verdict != score.verdict:
            changes[self.verdicts[score.model]] = markup.verdict(score, small=True)
        if shown is None or shown.answer != score.answer:
            changes[self.answers[score.model]] = score.answer
        if score.model != self.best:
            return changes
        if shown is None or shown.verdict != score.verdict:
            changes[self.verdict] = markup.verdict(score)
        if shown is None:
            readings = self.run.discernments
            changes[self.similarity] = markup.bars(score, readings.models[self.best] if readings else None)
            changes[self.map] = markup.state_map([score], readings)
            changes[self.words] = markup.empty(texts.COMPUTING_WORDS)
        elif shown.words != score.words:
            changes[self.words] = markup.words(score)
        return changes


class PairTab:
    """Two prompts: both verdicts and answers of the best model, both on the map, and a table of all models."""

    def __init__(self, run: OpenRun, pairs: list[Pair], marks: Path | None):
        self.run = run
        with gr.Row():
            prompts = [
                gr.Textbox(label=label, value=text, max_lines=6, elem_id=side)
                for side, label, text in zip(
                    texts.SIDES, texts.SIDE_PROMPTS, (pairs[0].toxic, pairs[0].seemingly_toxic), strict=True
                )
            ]
        both = gr.Button(texts.RUN_PAIR, variant="primary", elem_id="both")
        with gr.Accordion(texts.MORE_PAIRS, open=False):
            examples = [gr.Button(f"{p.toxic}  /  {p.seemingly_toxic}", elem_classes="example") for p in pairs]
        self.dial = DialSlider(run, "pair")
        self.verdicts, self.answers = [], []
        self.marks: list[MarkButtons] = []
        with gr.Row():
            for side in texts.SIDES:
                with gr.Column(min_width=280):
                    self.verdicts.append(_placeholder(texts.NO_SIDE_VERDICT_YET.format(side=side), f"verdict-{side}"))
                    self.answers.append(_answer_box(texts.SIDE_ANSWER.format(side=side), f"answer-{side}"))
                    self.marks.append(MarkButtons(marks, run.titles, side, self.dial.asked))
        with gr.Row():
            with gr.Column(min_width=300):
                self.table = _placeholder(texts.NO_TABLE_YET, "pair-verdicts")
            with gr.Column(min_width=300):
                self.map = _placeholder(texts.NO_PAIR_MAP_YET, "pair-map")

        outputs = [*self.verdicts, *self.answers, self.table, self.map]
        outputs += [part for buttons in self.marks for part in buttons.outputs]
        inputs = [*prompts, self.dial.asked, *self.dial.positions]
        shown = {"show_progress_on": self.table}
        how = AT_ANY_TIME | shown
        both.click(self.results, inputs, outputs, **how)
        for button, pair in zip(examples, pairs, strict=True):
            chosen = button.click(lambda p=pair: (p.toxic, p.seemingly_toxic), None, prompts, **NO_WORK)
            chosen.then(self.results, inputs, outputs, **how)
        self.dial.when_moved(self.turned, outputs, **MODEL_WORK | shown)

    def results(self, first: str, second: str, asked: Asked, position: float | None = None) -> Iterator[dict[Any, Any]]:
        """What to show of two prompts, as it becomes known: the best model's answers are streamed."""
        prompts, position = (first, second), asked.newest(position)
        _require(self.run, prompts)
        asked.prompts, asked.position, asked.scores = prompts, position, {}
        yield from self.turned(asked, position)
        with user_errors_shown():
            for name in self.run.names[1:]:
                if asked.prompts is not prompts:
                    return
                scores = self.run.score_list(name, [first, second])
                if asked.prompts is not prompts:
                    return
                asked.scores[name] = scores
                yield {self.table: self._table(asked)}

    def turned(self, asked: Asked, position: float | None) -> Iterator[dict[Any, Any]]:
        """What to show of the best model, on its own when the dial was turned."""
        prompts, sides = asked.prompts, []
        changes: dict[Any, Any] = {}
        for buttons in self.marks if prompts else ():
            changes |= buttons.closed(asked)
        with user_errors_shown():
            for prompt, verdict, answer, buttons in zip(prompts, self.verdicts, self.answers, self.marks, strict=False):
                for score in self.dial.stream(prompt, False, asked, position):
                    changes |= {answer: score.answer, verdict: markup.verdict(score)}
                    if score.kind is not None:
                        changes |= buttons.whole(asked, score)
                    yield changes
                    changes = {}
                if not asked.wants(prompts, position):
                    return
                sides.append(score)
                yield {self.map: markup.state_map(sides, self.run.discernments)}
        if sides:
            asked.scores[self.run.names[0]] = sides
            yield {self.table: self._table(asked)}

    def _table(self, asked: Asked) -> str:
        return markup.pair_table({name: asked.scores[name] for name in self.run.names if name in asked.scores})


class ListTab:
    """A pasted or uploaded list: a table of scores, and a file of them to download. model: which of the models."""

    def __init__(self, run: OpenRun):
        self.run = run
        self.downloads = tempfile.TemporaryDirectory(prefix="dcr-lite-")  # deleted with the page
        with gr.Row():
            pasted = gr.Textbox(label=texts.PASTE, lines=6, max_lines=12, elem_id="pasted")
            upload = gr.File(
                label=texts.UPLOAD, file_types=[".csv", ".jsonl", ".txt"], type="filepath", elem_id="upload"
            )
        with gr.Row():
            self.model = gr.Dropdown(self.choices(), value=run.names[0], label=texts.MODEL, elem_id="model")
            button = gr.Button(texts.SCORE_LIST, variant="primary", elem_id="score-list")
        self.dial = DialSlider(run, "list")
        table = gr.Dataframe(
            headers=list(texts.COLUMNS), datatype=["str", "str", "number", "number", "number"], label=texts.SCORES,
            interactive=False, wrap=True, elem_id="scores", column_widths=["26%", "15%", "24%", "13%", "22%"],
        )  # fmt: skip
        download = gr.File(label=texts.DOWNLOAD, interactive=False, elem_id="download")
        # A queue of its own: other requests are served between the batches of a long list.
        button.click(
            self.results, [pasted, upload, self.model, *self.dial.positions], [table, download],
            concurrency_id="list", concurrency_limit=1, api_visibility="private",
        )  # fmt: skip

    def choices(self) -> list[tuple[str, str]]:
        """The models, by title."""
        return [(texts.MODEL_TITLES[name], name) for name in self.run.names]

    def results(
        self, text: str | None, file: str | None, name: str, position: float | None = None,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Iterator[Any]:  # fmt: skip
        """The rows of the table, and the path of a CSV file with them and the answers. The dial is DCR's alone. Between
        the batches nothing is changed, but the list of a client that has left ends there."""
        with user_errors_shown():
            if file and text and text.strip():
                raise UserError(texts.TWO_LISTS)
            if file:
                prompts = read_prompt_file(Path(file))
            else:
                prompts = read_prompt_list((text or "").encode("utf-8", "replace"), "the list")
            strength = self.dial.strength(position) if name == self.run.names[0] else None
            scores: list[Score] = []
            for batch in self.run.score_batches(name, prompts, strength):
                scores += batch
                progress((len(scores), len(prompts)), unit="prompts")
                yield gr.skip(), gr.skip()
            yield [score_row(score) for score in scores], str(write_scores(scores, Path(self.downloads.name)))


def _require(run: OpenRun, prompts: tuple[str, ...]) -> None:
    """Raises an error on the page where a prompt cannot be asked, while what is shown is still what was asked last."""
    with user_errors_shown():
        for prompt in prompts:
            run.stream(run.names[0], prompt)


def _placeholder(text: str, name: str) -> Any:
    return gr.HTML(markup.empty(text), elem_id=name)


def _answer_box(label: str, name: str) -> Any:
    return gr.Textbox(label=label, lines=3, max_lines=12, interactive=False, elem_id=name, autoscroll=False)
