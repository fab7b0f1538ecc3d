"""The page as Gradio blocks: heading, tabs, the API for programs, and the server."""

import os
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from dcr_lite.demo import texts
from dcr_lite.demo.chat import ChatTab
from dcr_lite.demo.conversation import checked
from dcr_lite.demo.examples import example_pairs
from dcr_lite.demo.markup import box, model_heading
from dcr_lite.demo.mend_tab import MendTab
from dcr_lite.demo.mending import Mending
from dcr_lite.demo.scoring import OpenRun
from dcr_lite.demo.slider import AT_ONCE, NO_WORK
from dcr_lite.demo.tabs import ListTab, OnePromptTab, PairTab, user_errors_shown
from dcr_lite.names import MENDED
from dcr_lite.run.caution import caution_of

MAX_UPLOAD = "100mb"  # far above the limit of a list, since above this the page says no more than "Error"
MAX_WAITING = 100  # requests in the queue
HOUR = 3600  # seconds, after which uploads and downloads are deleted


def build(run: OpenRun, marks: Path | None = None, mending: Mending | None = None) -> Any:
    """The page and the API for an open run, as gr.Blocks to launch. marks: the file that marks of answers go to; None
    where nobody may leave any. mending: what the tab that mends works with; None for a page without it."""
    pairs = example_pairs(run)
    with gr.Blocks(title=f"{run.title}: dcr-lite", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.HTML(box(f"<h1>{texts.HEADING}</h1><p>{escape(run.title)}</p>"))
        if run.note:
            gr.HTML(box(f"<b>{escape(run.note)}</b>", role="note"), elem_id="note")
        with gr.Tab(texts.ONE_TAB, id="one"):
            one = OnePromptTab(run, pairs, marks)
        with gr.Tab(texts.PAIR_TAB, id="pair"):
            PairTab(run, pairs, marks)
        with gr.Tab(texts.CHAT_TAB, id="chat"):
            chat = ChatTab(run, marks)
        with gr.Tab(texts.LIST_TAB, id="list"):
            listed = ListTab(run)
        if mending:
            with gr.Tab(texts.MEND_TAB, id="mend") as tab:
                mend = MendTab(mending, tab, run)

            def show_mended() -> tuple[Any, ...]:
                seen = MENDED in run.names
                head = model_heading(MENDED, caution_of(run.mended) if seen and run.mended else "")
                return gr.Column(visible=seen), gr.Column(visible=seen), head, head, gr.Dropdown(listed.choices())

            parts = [one.beside, chat.beside, one.heading, chat.heading, listed.model]
            mend.opened.then(show_mended, None, parts, **NO_WORK)
            page.load(show_mended, None, parts, **NO_WORK)
        gr.HTML(box(f"<p>{texts.FOOTER}</p>"))
        offer_api(run)
    page.queue(max_size=MAX_WAITING)
    return page


def offer_api(run: OpenRun) -> None:
    """Scores for programs, as plain values: /score, /answer, /chat and /score_list."""
    best = run.names[0]

    def score(prompt: str, model: str = best, strength: float | None = None) -> dict[str, Any]:
        """One prompt: probability, similarities, words, answer, verdict. strength: of DCR's dial, if not the run's."""
        with user_errors_shown():
            return run.score(model, prompt, strength=strength).for_json()

    def answer(prompt: str, model: str = best, strength: float | None = None) -> Iterator[str]:
        """The answer as it grows."""
        with user_errors_shown():
            for part in run.stream(model, prompt, words=False, strength=strength):
                yield part.answer

    def chat(
        messages: list[dict[str, str]], model: str = best, strength: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """The answer to the last of a conversation's messages as it grows, with the values of /score but for the
        prompt's similarities and words. Each message has a role (system, user, assistant) and a content."""
        with user_errors_shown():
            for part in run.converse(model, checked(messages), strength=strength):
                yield part.for_json()

    def score_list(prompts: list[str], model: str = best, strength: float | None = None) -> list[dict[str, Any]]:
        """Many prompts, in order."""
        with user_errors_shown():
            return [one.for_json() for one in run.score_list(model, prompts, strength=strength)]

    api(score, api_name="score", concurrency_id="model", concurrency_limit=AT_ONCE)
    api(answer, api_name="answer", concurrency_id="model", concurrency_limit=AT_ONCE)
    api(chat, api_name="chat", concurrency_id="model", concurrency_limit=AT_ONCE)
    api(score_list, api_name="score_list", concurrency_id="list", concurrency_limit=1)


def launch(page: Any, share: bool = False, address: str = "127.0.0.1", **options: Any) -> Any:
    """Start the server at ``address``, whatever GRADIO_SERVER_NAME and GRADIO_SHARE say; only ``share`` opens a
    public link. ``options``: further arguments of Blocks.launch."""
    # Fonts of the system: the page loads nothing from other servers.
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    # Its own shades have too little contrast for text (WCAG AA asks for 4.5). page.css has the accent of dark mode.
    theme.set(
        block_label_text_color="*primary_600", block_title_text_color="*primary_600", color_accent="*primary_600",
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        body_text_color_subdued="*neutral_500", link_text_color_dark="*primary_400",
        link_text_color_visited_dark="*primary_400", checkbox_label_background_fill_selected="*primary_600",
    )  # fmt: skip
    _bypass_proxies()
    css, js = ((files("dcr_lite.demo") / name).read_text(encoding="utf-8") for name in ("page.css", "keys.js"))
    return page.launch(
        server_name=address, share=share, theme=theme, css=css, js=js, max_file_size=MAX_UPLOAD, ssr_mode=False,
        footer_links=["api"], _frontend=False,  # it is served; but a busy machine need not answer within 3 seconds
        **options,
    )  # fmt: skip


def _bypass_proxies() -> None:
    """Gradio asks its own server whether it is up, which no proxy can reach."""
    hosts = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys((*hosts, "127.0.0.1", "localhost")))
