"""The demo: a prompt goes in, and a model is seen telling toxic from seemingly toxic.

    python app.py                     # the newest run under runs/, else the stock model
    python app.py --run runs/NAME --port 7861

A thin view: scoring lives in dcr_lite/scoring.py, the pictures in dcr_lite/markup.py. Prompts and answers are shown in
plain text boxes or escaped; nothing in them is ever read as HTML or Markdown.
"""

import csv
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

SHOWN_PAIRS = 4  # matched pairs to click
LONGEST_EXAMPLE = 80  # characters that fit on a button
UPLOAD = "100mb"  # beyond this the page says no more than "Error"; below it a list that is too large gets a sentence
# On a phone the results begin below the fold.
SCROLL = """(prompt) => {
  if (innerWidth < 700) document.getElementById("decision").scrollIntoView({behavior: "smooth"});
  return prompt;
}"""
WAITING = 100  # clients that may wait for their turn
HOUR = 3600
COLUMNS = ("prompt", "verdict", "refusal probability", "like toxic", "like seemingly toxic")


MODEL_WORK: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,  # one prompt at a time is fastest for all: they would only share two cores
    "api_visibility": "private",
    "show_progress": "minimal",
}


@contextmanager
def said_kindly() -> Iterator[None]:
    """What a user can mend is shown as a message. Gradio reads messages as HTML, so it is escaped."""
    import gradio as gr

    from dcr_lite.errors import UserError

    try:
        yield
    except UserError as error:
        message = str(error)
        raise gr.Error(escape(message[:1].upper() + message[1:]), duration=None, print_exception=False) from None


def kindly(work: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of the page that yields its outputs, with ``said_kindly`` around it."""

    def handler(*values: Any) -> Iterator[Any]:
        with said_kindly():
            yield from work(*values)

    return handler


def build(run: Any) -> Any:
    """The page and the API for an open run (dcr_lite.demo.scoring.OpenRun), as gr.Blocks yet to be launched."""
    import gradio as gr

    pairs = example_pairs(run)
    with gr.Blocks(
        title="dcr-lite: toxic, or does it only sound so?", analytics_enabled=False, delete_cache=(HOUR, HOUR)
    ) as page:
        gr.HTML(f'<div class="dcr"><h1>Toxic, or does it only sound so?</h1><p>{escape(run.title)}</p></div>')
        if run.note:
            gr.HTML(f'<div class="dcr" role="note"><b>{escape(run.note)}</b></div>', elem_id="note")
        with gr.Tab("One prompt", id="one"):
            one_prompt_tab(run, pairs)
        with gr.Tab("A pair", id="pair"):
            pair_tab(run, pairs)
        with gr.Tab("A list", id="list"):
            list_tab(run)
        gr.HTML(
            "<div class='dcr'><p>Answers are greedy. The verdict is a judge's of the answer's text; the probability is "
            "that of opening with a refusal, read before the first word. It discerns; it is not safe.</p></div>"
        )
        offer_api(run)
    page.queue(max_size=WAITING)
    return page


def example_pairs(run: Any) -> list[Any]:
    """A few short pairs that nothing was trained on, where the run has them; else shipped ones."""
    from dcr_lite.data.rows import read_pairs
    from dcr_lite.files import SHIPPED

    pairs = run.discernments.pairs if run.discernments else read_pairs(SHIPPED / "pairs.jsonl")
    pairs = [p for p in pairs if max(len(p.toxic), len(p.seemingly_toxic)) <= LONGEST_EXAMPLE] or pairs
    return pairs[:: max(1, len(pairs) // SHOWN_PAIRS)][:SHOWN_PAIRS]


def one_prompt_tab(run: Any, pairs: list[Any]) -> None:
    """A prompt, everything about it at a glance, and the models side by side."""
    import gradio as gr

    from dcr_lite.demo import markup
    from dcr_lite.demo.scoring import Score
    from dcr_lite.names import METHODS

    best, readings = run.names[0], run.discernments
    with gr.Row():
        prompt = gr.Textbox(
            label="Prompt", placeholder="How do I kill a Python process?", lines=1, max_lines=6, scale=5,
            autofocus=True, elem_id="prompt",
        )  # fmt: skip
        ask = gr.Button("Ask", variant="primary", scale=1, min_width=110, elem_id="ask")
    with gr.Accordion("Matched pairs to try: a toxic prompt, then one that only sounds so", open=True):
        examples = [_pair_buttons(pair) for pair in pairs]
    with gr.Row():
        with gr.Column(min_width=300):
            decision = gr.HTML(markup.empty("The verdict will stand here."), elem_id="decision")
            similarity = gr.HTML(markup.empty("How like the two kinds the prompt is."), elem_id="similarity")
            weights = gr.HTML(markup.empty("The words that weigh most."), elem_id="words")
        with gr.Column(min_width=300):
            map_ = gr.HTML(markup.empty("Where the prompt lies among others."), elem_id="map")
    with gr.Row():
        badges, answers = {}, {}
        for name in run.names:
            with gr.Column(min_width=250):
                gr.HTML(f'<div class="dcr"><h2>{METHODS[name]}</h2></div>')
                badges[name] = gr.HTML(markup.empty("no verdict yet"), elem_id=f"verdict-{name}")
                answers[name] = _answer_box(f"Answer of {METHODS[name]}", f"answer-{name}")

    def grow(name: str, shown: Score | None, score: Score) -> dict[Any, Any]:
        """What has changed since ``shown``: only that is sent."""
        out: dict[Any, Any] = {}
        if shown is None or shown.refused != score.refused:
            out[badges[name]] = markup.verdict(score, small=True)
            if name == best:
                out[decision] = markup.verdict(score)
        if shown is None or shown.answer != score.answer:
            out[answers[name]] = score.answer
        if name == best and shown is None:
            out[similarity] = markup.bars(score, readings.models[best] if readings else None)
            out[map_] = markup.state_map([score], readings)
            out[weights] = markup.empty("Leaving out each word once …")
        elif name == best and shown and (score.words != shown.words or (not score.words and score.refused is not None)):
            out[weights] = markup.words(score)
        return out

    def ask_all(prompt: str) -> Iterator[dict[Any, Any]]:
        """Everything about one prompt: the best model first, then the others in their columns."""
        waiting = dict.fromkeys(answers.values(), "")
        waiting |= {badge: markup.empty("waits for its turn") for badge in badges.values()}
        for name in run.names:
            shown: Score | None = None
            for score in run.stream(name, prompt, words=name == best):
                if out := waiting | grow(name, shown, score):
                    yield out
                waiting, shown = {}, score

    outputs = [decision, similarity, weights, map_, *badges.values(), *answers.values()]
    asked = kindly(ask_all)
    how = MODEL_WORK | {"show_progress_on": decision, "js": SCROLL}
    gr.on([prompt.submit, ask.click], asked, prompt, outputs, **how)
    for button in [button for sides in examples for button in sides]:
        chosen = button.click(lambda text: text, button, prompt, api_visibility="private", queue=False)
        chosen.then(asked, prompt, outputs, **how)


def pair_tab(run: Any, pairs: list[Any]) -> None:
    """Two prompts, both verdicts, and where both lie."""
    import gradio as gr

    from dcr_lite.demo import markup
    from dcr_lite.demo.scoring import Score

    best = run.names[0]
    with gr.Row():
        first = gr.Textbox(label="First prompt", value=pairs[0].toxic, max_lines=6, elem_id="first")
        second = gr.Textbox(label="Second prompt", value=pairs[0].seemingly_toxic, max_lines=6, elem_id="second")
    both = gr.Button("Run the pair", variant="primary", elem_id="both")
    with gr.Accordion("Matched pairs to try", open=False):
        pair_examples = [gr.Button(f"{p.toxic}  /  {p.seemingly_toxic}", elem_classes="example") for p in pairs]
    with gr.Row():
        pair_badges, pair_answers = [], []
        for side in ("first", "second"):
            with gr.Column(min_width=280):
                pair_badges.append(gr.HTML(markup.empty(f"verdict on the {side}"), elem_id=f"verdict-{side}"))
                pair_answers.append(_answer_box(f"Answer to the {side} prompt", f"answer-{side}"))
    with gr.Row():
        with gr.Column(min_width=300):
            pair_verdicts = gr.HTML(markup.empty("The verdicts of all models."), elem_id="pair-verdicts")
        with gr.Column(min_width=300):
            pair_map = gr.HTML(markup.empty("Where the two lie."), elem_id="pair-map")

    def whole_pair(first: str, second: str) -> Iterator[dict[Any, Any]]:
        """Both prompts through every model; the best model's answers are streamed."""
        sides: list[Score] = []
        table: dict[str, tuple[Score, Score]] = {}
        for prompt, badge, answer in zip((first, second), pair_badges, pair_answers, strict=True):
            for score in run.stream(best, prompt, words=False):
                yield {answer: score.answer, badge: markup.verdict(score)}
            sides.append(score)
            yield {pair_map: markup.state_map(sides, run.discernments)}
        table[best] = (sides[0], sides[1])
        yield {pair_verdicts: markup.pair_table(table)}
        for name in run.names[1:]:
            one, other = run.score_list(name, [first, second])
            table[name] = one, other
            yield {pair_verdicts: markup.pair_table(table)}

    pair_outputs = [*pair_badges, *pair_answers, pair_verdicts, pair_map]
    how = MODEL_WORK | {"show_progress_on": pair_verdicts}
    both.click(kindly(whole_pair), [first, second], pair_outputs, **how)
    for button, pair in zip(pair_examples, pairs, strict=True):
        chosen = button.click(partial(_sides, pair), None, [first, second], api_visibility="private", queue=False)
        chosen.then(kindly(whole_pair), [first, second], pair_outputs, **how)


def list_tab(run: Any) -> None:
    """A pasted or uploaded list, its table, and a file to download."""
    import gradio as gr

    from dcr_lite.demo.prompt_list import read_prompt_file, read_prompt_list
    from dcr_lite.names import METHODS

    downloads = tempfile.TemporaryDirectory(prefix="dcr-lite-")  # goes when the page does

    def whole_list(text: str, file: str | None, name: str, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        """A table of scores, and a file with them and the answers."""
        with said_kindly():
            prompts = (
                read_prompt_file(Path(file)) if file else read_prompt_list(text.encode("utf-8", "replace"), "the list")
            )
            scores = run.score_list(name, prompts, lambda done, total: progress((done, total), unit="prompts"))
            return [row_of(score) for score in scores], write_csv(scores, Path(downloads.name))

    with gr.Row():
        pasted = gr.Textbox(label="Prompts, one a line (or CSV or JSON Lines)", lines=6, max_lines=12, elem_id="pasted")
        upload = gr.File(
            label="or a file: CSV with a column prompt, or JSON Lines",
            file_types=[".csv", ".jsonl", ".txt"], type="filepath", elem_id="upload",
        )  # fmt: skip
    with gr.Row():
        which = gr.Dropdown([(METHODS[n], n) for n in run.names], value=run.names[0], label="Model", elem_id="model")
        score_all = gr.Button("Score the list", variant="primary", elem_id="score-list")
    table = gr.Dataframe(
        headers=list(COLUMNS), datatype=["str", "str", "number", "number", "number"], label="Scores",
        interactive=False, wrap=True, elem_id="scores", column_widths=["29%", "16%", "22%", "13%", "20%"],
    )  # fmt: skip
    saved = gr.File(label="The scores with the answers, as CSV", interactive=False, elem_id="download")
    # A long list shares the model with the other tabs batch by batch instead of holding everybody up.
    score_all.click(
        whole_list, [pasted, upload, which], [table, saved],
        concurrency_id="list", concurrency_limit=1, api_visibility="private",
    )  # fmt: skip


def offer_api(run: Any) -> None:
    """The same for programs, as plain values: /score, /answer and /score_list."""
    from gradio.events import api

    best = run.names[0]

    def api_score(prompt: str, model: str = best) -> dict[str, Any]:
        """One prompt: probability, similarities, words, answer, verdict."""
        with said_kindly():
            return run.score(model, prompt).for_json()

    def api_answer(prompt: str, model: str = best) -> Iterator[str]:
        """The answer as it grows."""
        with said_kindly():
            for score in run.stream(model, prompt, words=False):
                yield score.answer

    def api_list(prompts: list[str], model: str = best) -> list[dict[str, Any]]:
        """Many prompts, in order."""
        with said_kindly():
            return [score.for_json() for score in run.score_list(model, prompts)]

    api(api_score, api_name="score", concurrency_id="model", concurrency_limit=1)
    api(api_answer, api_name="answer", concurrency_id="model", concurrency_limit=1)
    api(api_list, api_name="score_list", concurrency_id="list", concurrency_limit=1)


def _sides(pair: Any) -> tuple[str, str]:
    return pair.toxic, pair.seemingly_toxic


def _pair_buttons(pair: Any) -> list[Any]:
    """The two sides of a pair as buttons: reached with Tab, pressed with Enter, read by their text."""
    import gradio as gr

    with gr.Row(elem_classes="pair"):
        return [gr.Button(text, size="sm", elem_classes="example") for text in (pair.toxic, pair.seemingly_toxic)]


def _answer_box(label: str, name: str) -> Any:
    import gradio as gr

    return gr.Textbox(label=label, lines=3, max_lines=12, interactive=False, elem_id=name, autoscroll=False)


def row_of(score: Any) -> list[Any]:
    """A row of the table, as COLUMNS."""
    like = score.similarity
    numbers = [None, None] if like is None else [round(like.toxic, 3), round(like.seemingly_toxic, 3)]
    return [score.prompt, "refuses" if score.refused else "answers", round(score.refusal_probability, 3), *numbers]


def write_csv(scores: list[Any], folder: Path) -> str:
    """The rows with the answers in a file of their own; older ones go, since Gradio keeps what it has handed out."""
    for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-4]:
        old.unlink(missing_ok=True)
    path = folder / f"scores-{uuid.uuid4().hex[:8]}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "answer"])
        writer.writerows([*row_of(score), score.answer] for score in scores)
    return str(path)


def launch(page: Any, **how: Any) -> Any:
    """Start the server, on this machine alone unless asked otherwise. ``how``: further arguments of Blocks.launch."""
    import gradio as gr

    from dcr_lite.demo.markup import CSS

    # Fonts of the system: the page asks no other server for anything.
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    css = (
        CSS
        + """
.example { font-weight: 400 !important; text-align: left !important; justify-content: flex-start !important;
  white-space: normal !important; }
#ask, #score-list { align-self: flex-end; min-height: 3rem; }
.gradio-container { max-width: min(1240px, 100vw) !important; margin: auto; box-sizing: border-box; }
.gradio-container > .main { max-width: 100vw !important; box-sizing: border-box; }
.gradio-container .contain { min-width: 0; }
@media (max-width: 700px) {
  #scores .table-wrap * { font-size: 0.66rem !important; word-break: normal !important;
    overflow-wrap: normal !important; padding-left: 1px !important; padding-right: 1px !important; }
}
#scores, #scores .table-wrap { max-width: 100%; overflow-x: auto; }
"""
    )
    return page.launch(
        server_name="127.0.0.1", theme=theme, css=css, max_file_size=UPLOAD, ssr_mode=False, footer_links=["api"],
        **how,
    )  # fmt: skip
