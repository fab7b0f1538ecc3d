"""The tab that mends: the marks so far, the check of them, the run that trains on them, how it came out, and the mended
model opened beside the others."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from dcr_lite.data.marks import remove_marks
from dcr_lite.demo import mend_markup, texts
from dcr_lite.demo.mending import Mending, Status
from dcr_lite.demo.scoring import OpenRun
from dcr_lite.demo.slider import MODEL_WORK, NO_WORK
from dcr_lite.errors import UserError, sentence
from dcr_lite.mend.page import doubt
from dcr_lite.mend.results import read_check, read_outcome

LOOKS_EVERY = 2.0  # seconds, while a process works
LONGEST_CHOICE = 90  # characters of a prompt in a list to choose from
Doubts = list[tuple[str, int]]  # doubtful prompts in words, with their numbers


class MendTab:
    """What ``mending`` knows, and buttons that change it. All clients see the same; one's page follows what another has
    started as soon as its tab is opened. run: what the mended model is opened in. opened: the event after which it may
    be."""

    def __init__(self, mending: Mending, tab: Any, run: OpenRun):
        self.mending, self.run = mending, run
        gr.HTML(mend_markup.what_it_mends(mending))
        self.table = gr.HTML(elem_id="marks")
        with gr.Row(visible=False) as self.removing:
            self.chosen = gr.Dropdown([], label=texts.MARK_TO_REMOVE, scale=4, min_width=200, elem_id="mark-to-remove")
            remove = gr.Button(texts.REMOVE_MARK, scale=1, min_width=110, elem_id="remove-mark")
        with gr.Row():
            self.check = gr.Button(texts.CHECK, min_width=90, elem_id="check")
            self.mend = gr.Button(texts.MEND, min_width=90, elem_id="mend")
            self.stop = gr.Button(texts.STOP, variant="stop", min_width=90, elem_id="stop")
            self.open = gr.Button(texts.OPEN, variant="primary", visible=False, min_width=200, elem_id="open-mended")
        self.said = gr.HTML(elem_id="mend-status")
        self.progress = gr.HTML(elem_id="mend-progress")
        self.seen = gr.HTML(elem_id="mend-check")
        self.sure = gr.CheckboxGroup([], label=texts.SURE, visible=False, elem_id="sure")
        self.doubts = gr.State([])  # the choices of ``sure`` that a page has: what is ticked stays while they are these
        self.outcome = gr.HTML(elem_id="mended")
        timer = self.timer = gr.Timer(LOOKS_EVERY, active=False)

        outputs = [
            self.table, self.removing, self.chosen, self.check, self.mend, self.stop, self.open, self.said,
            self.progress, self.seen, self.sure, self.doubts, self.outcome, timer,
        ]  # fmt: skip
        how = NO_WORK | {"show_progress": "hidden"}
        tab.select(self.shown, self.doubts, outputs, **how)
        timer.tick(self.looked, self.doubts, outputs, **how)
        remove.click(self.removed, [self.doubts, self.chosen], outputs, **how)
        self.check.click(lambda doubts: self._after(mending.check, doubts), self.doubts, outputs, **how)
        self.mend.click(self.begun, [self.doubts, self.sure], outputs, **how)
        self.stop.click(lambda doubts: self._after(mending.stop, doubts), self.doubts, outputs, **how)
        self.opened = self.open.click(self.open_mended, self.doubts, outputs, **MODEL_WORK)

    # --- events: of a page that has the choices ``doubts`` ------------------------------------------------------------

    def shown(self, doubts: Doubts) -> dict[Any, Any]:
        """Everything as it stands."""
        return self._after(lambda: None, doubts)

    def looked(self, doubts: Doubts) -> dict[Any, Any]:
        """While a process works how far it is; then everything."""
        if not self.mending.works:
            return self.shown(doubts)
        return {self.progress: mend_markup.progress(self.mending.status())}

    def begun(self, doubts: Doubts, sure: list[int]) -> dict[Any, Any]:
        """With the mending begun: of the doubtful prompts with those that are ticked, of which a page may have an older
        list than another has made since."""

        def start() -> None:
            if sure and self._doubtful(self.mending.status()) != doubts:
                raise UserError(texts.DOUBTS_CHANGED)
            self.mending.mend(sure)

        return self._after(start, doubts)

    def removed(self, doubts: Doubts, prompt: str | None) -> dict[Any, Any]:
        """Without the marks of a prompt."""
        return self._after(lambda: remove_marks(self.mending.marks, prompt) if prompt else None, doubts)

    def open_mended(self, doubts: Doubts) -> dict[Any, Any]:
        """With the mended model open in the other tabs."""
        return self._after(lambda: self.run.open_mended(self.mending.status().run), doubts)

    def _after(self, work: Callable[[], object], doubts: Doubts) -> dict[Any, Any]:
        """Everything as it stands after ``work``, with what went wrong in it."""
        problem = ""
        try:
            work()
        except Exception as error:
            problem = _said_of(error)
        try:
            return self._everything(problem, doubts)
        except Exception as error:  # marks or a run that cannot be read: the rest of the page stays as it is
            idle = Status("unchecked", self.mending.home)
            return {self.said: mend_markup.status(idle, [], _said_of(error)), self.timer: gr.Timer(active=False)}

    # --- what is shown ------------------------------------------------------------------------------------------------

    def _everything(self, problem: str, doubts: Doubts) -> dict[Any, Any]:
        status, marks, wishes = self.mending.status(), self.mending.read_marks(), self.mending.wishes()
        problem = problem or self.mending.obstacle
        can = not status.works and not self.mending.obstacle
        mends = status.step == "stopped" or (status.step == "checked" and not status.changed)
        checks = bool(marks) and (status.step == "unchecked" or status.changed)
        title = texts.GO_ON if status.step == "stopped" else texts.MEND
        choices = [(_short(mark.prompt), mark.prompt) for mark in marks]
        mended, opened = status.step == "mended", self.run.mended == status.run
        return {
            self.table: mend_markup.marks_table(marks, wishes),
            self.removing: gr.Row(visible=bool(marks)),
            self.chosen: gr.Dropdown(choices, value=None),
            self.check: gr.Button(interactive=can and checks, variant=_variant(can and checks and not mends)),
            self.mend: gr.Button(title, interactive=can and mends, variant=_variant(can and mends)),
            self.stop: gr.Button(interactive=status.works and not status.stopping),
            self.open: gr.Button(visible=mended, interactive=not opened),
            self.said: mend_markup.status(status, marks, problem, mended and opened),
            self.progress: mend_markup.progress(status),
            self.timer: gr.Timer(active=status.works),
            **self._found(status, doubts),
        }

    def _found(self, status: Status, doubts: Doubts) -> dict[Any, Any]:
        """What the check found, and how it came out, as far as there is anything."""
        parts: dict[Any, Any] = {self.seen: "", self.outcome: ""}
        found = self._doubtful(status)
        if status.step == "mended":
            parts[self.outcome] = mend_markup.outcome(read_outcome(status.run))
        elif status.step in ("checked", "mending", "stopped") and (check := read_check(status.run)):
            parts[self.seen] = mend_markup.findings(check, self.mending.wishes())
        if found != doubts:
            parts |= {self.sure: gr.CheckboxGroup(found, value=[], visible=bool(found)), self.doubts: found}
        return parts

    def _doubtful(self, status: Status) -> Doubts:
        """The prompts to tick, as the last check has found them; none where nothing waits for it."""
        check = read_check(status.run) if status.step == "checked" else None
        return [(doubt(one, str), one["number"]) for one in check["doubtful"]] if check else []


def _variant(first: bool) -> str:
    """How a button looks. first: it is the one to press next."""
    return "primary" if first else "secondary"


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= LONGEST_CHOICE else f"{line[: LONGEST_CHOICE - 2]} \N{HORIZONTAL ELLIPSIS}"


def _said_of(error: Exception) -> str:
    """An error in a sentence. Raises one that nobody has foreseen."""
    if (said := sentence(error, texts.TRY_AGAIN)) is None:
        raise error
    return said
