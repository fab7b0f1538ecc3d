"""The dial on the page: a slider, a button for each mark, and what the strength does to development prompts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from dcr_lite.demo import markup, texts
from dcr_lite.demo.dial import STEP
from dcr_lite.demo.score import Score
from dcr_lite.demo.scoring import OpenRun

# Requests that are served at once, their answers in batches. Each holds one of the 40 threads that Gradio has for all.
AT_ONCE = 32
MODEL_WORK: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": AT_ONCE,
    "api_visibility": "private",
    "show_progress": "minimal",
}
# A new prompt is taken while answers are still streamed: what is streamed then ends.
AT_ANY_TIME = MODEL_WORK | {"trigger_mode": "multiple"}
NO_WORK: dict[str, Any] = {"api_visibility": "private", "queue": False}
Results = Callable[..., Iterator[dict[Any, Any]]]


@dataclass
class Asked:
    """What a client has asked for last: its prompts, where its slider stands (None without a dial), the scores so far,
    and by the name of its box the score of each answer that is whole. Each client has its own; all its events get the
    same object, and several of them may run at once."""

    prompts: tuple[str, ...] = ()
    position: float | None = None
    scores: dict[str, list[Score]] = field(default_factory=dict)
    whole: dict[str, Score] = field(default_factory=dict)

    def newest(self, position: float | None) -> float | None:
        """Where the slider stands: as it has noted last, which may be later than the ``position`` of an event that has
        waited since it was sent."""
        return position if self.position is None else self.position

    def wants(self, prompts: tuple[str, ...], position: float | None) -> bool:
        """Whether what began with these prompts and this position is what the client waits for: it has not asked again
        since, be it for the same prompts, and its slider has not moved on."""
        return self.prompts is prompts and self.position == position


class DialSlider:
    """A slider in a tab; nothing to see where the run has no dial. asked: the client's Asked, as an input of events;
    ``asked``, if given, is what each begins with. positions: the slider as a further input, or nothing."""

    def __init__(self, run: OpenRun, name: str, asked: Asked | None = None):
        self.run, self.dial = run, run.dial
        self.asked = gr.State(asked or Asked())
        self.positions: list[Any] = []
        if self.dial is None:
            return
        low, high = self.dial.ends
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                slider = gr.Slider(
                    low,
                    high,
                    self.dial.setting.strength,
                    step=STEP,
                    label=texts.DIAL,
                    buttons=[],
                    elem_id=f"dial-{name}",
                )
                with gr.Row(elem_classes="inset"):
                    for title, strength in self.dial.marks.items():
                        mark = gr.Button(texts.MARK.format(name=title, strength=strength), size="sm", min_width=90)
                        mark.click(lambda strength=strength: strength, None, slider, **NO_WORK)
            with gr.Column(scale=2, min_width=260):
                curve = gr.HTML(markup.dial_curve(self.dial, self.dial.setting.strength), elem_id=f"curve-{name}")
        # Gradio's own raises for what its number box passes on while it is typed in. A method of this one slider: for a
        # subclass Gradio would write a file of stubs beside this module.
        slider.preprocess = self._within
        self.positions = [slider]
        self._moved = slider.change(self._move, [self.asked, slider], curve, show_progress="hidden", **NO_WORK)

    def _within(self, typed: float | None) -> float:
        """What stands in the number box as a position: between the ends, and the run's own for an empty box."""
        assert self.dial
        low, high = self.dial.ends
        return self.dial.setting.strength if typed is None else min(max(float(typed), low), high)

    def _move(self, asked: Asked, position: float) -> str:
        """Noted at once, so that what was being computed for another position ends."""
        asked.position = position
        assert self.dial
        return markup.dial_curve(self.dial, self.dial.snapped(position))

    def when_moved(self, results: Results, outputs: list[Any], **how: Any) -> None:
        """Call ``results(asked, position)`` with the last of the positions that the slider passes while it works."""

        def moved(asked: Asked, position: float) -> Iterator[dict[Any, Any]]:
            yield {outputs[0]: gr.skip()}  # Gradio empties the outputs of an event that ends without anything
            yield from results(asked, position)

        if self.positions:
            self._moved.then(moved, [self.asked, *self.positions], outputs, trigger_mode="always_last", **how)

    def strength(self, position: float | None) -> float | None:
        """The strength at a position of the slider."""
        return self.dial.snapped(position) if self.dial and position is not None else None

    def stream(self, prompt: str, words: bool, asked: Asked, position: float | None) -> Iterator[Score]:
        """The score of the run's best model as it grows; it ends early where the slider has moved on, or the client has
        asked for something else."""
        prompts = asked.prompts
        for score in self.run.stream(self.run.names[0], prompt, words, strength=self.strength(position)):
            if not asked.wants(prompts, position):
                return
            yield score
