"""Measures a run's DCR model on development pairs with the dial at any strength. What was measured is kept in the run
folder, as numbers without texts, and is not measured again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcr_lite.data.rows import prompts_of
from dcr_lite.files import damaged, read_state, write_state
from dcr_lite.measure import trade_off
from dcr_lite.measure.answers import measure
from dcr_lite.measure.general_ability import log_likelihoods
from dcr_lite.measure.trade_off import Reading, TradeOff, fit_trade_off
from dcr_lite.method.dial import Dial, turned
from dcr_lite.method.dial_fitting import GAINS, Readers, find_gain, fit_dial
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.model.prompt_cache import PromptCache
from dcr_lite.names import DCR
from dcr_lite.run.dial_setting import CURE
from dcr_lite.run.inputs import Data
from dcr_lite.run.stored_states import readers_of
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Settings

DIAL, READINGS = "dial.safetensors", "readings.json"


class Bench:
    """The DCR model of a run, as trained, with its dial.

    Of what is kept only those strengths count that were asked for since it was opened, or recalled: a measurement or a
    choice that was stopped goes on to the very choices that it would have made.

    folder: RUN/dial. progress: called with 1 after each measurement of the pairs.
    """

    progress: Callable[[int], None]

    def __init__(self, folder: Path, model: Model, data: Data, settings: Settings, readers: Readers | None = None):
        """Fits the dial, unless ``folder`` has it; its ``readers`` may be known. Raises UserError where its files are
        damaged."""
        self.model, self.folder, self.progress = model, folder, lambda done: None
        self.pairs, self._tokens = len(data.development), settings.answer_tokens
        plain = [one for one in data.watched if one.label == "plain"]
        self._prompts = prompts_of(data.development, "development") + plain
        self._rows = encode_asked(model.tokenizer, self._prompts, model.window - self._tokens)
        self._usual: list[tuple[list[int], list[int]]] | None = None  # plain prompts, answered at strength 0
        self._usual_loss = 0.0
        self._below = PromptCache(settings.layer)
        self._kept: dict[str, Any] = {"stock": None, "gains": {}, "at": {}}
        self._asked: dict[str, bool] = {}  # strengths, and whether for judged answers
        if (folder / READINGS).exists():
            self._kept = read_state(folder / READINGS, CURE)
        if not (folder / DIAL).exists():
            self._kept |= {"at": {}}  # of another dial
            self._fit(data, settings, readers or readers_of(model, data, settings)).save(folder / DIAL)
        self.dial = Dial.load(folder / DIAL)
        self._require_whole()

    def _fit(self, data: Data, settings: Settings, readers: Readers) -> Dial:
        unseen = self._rows[: 2 * self.pairs]
        fitted = fit_dial(self.model, DCR, settings.layer, data.training, data.instructions, readers=readers)
        with progress_bar("The dial's gain", len(GAINS) * len(unseen)) as shown, self._below_kept():
            fitted, self._kept["gains"] = find_gain(self.model, DCR, fitted, unseen, shown.advance)
        write_state(self._kept, self.folder / READINGS)
        return fitted

    def _require_whole(self) -> None:
        """Raises UserError where what was kept is damaged, or of other pairs."""
        shape = (2, self.pairs)
        try:
            sides = [
                self._kept["stock"],
                *(row.get(name) for row in self._kept["at"].values() for name in ("log_odds", "refused")),
            ]
            whole = all(np.shape(side) == shape for side in sides if side is not None)
            [float(number) for number in (*self._kept["at"], *self._kept["gains"].values())]
        except (LookupError, ValueError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise damaged(self.folder / READINGS, CURE)

    @contextmanager
    def _at(self, strength: float) -> Iterator[None]:
        """Within the block DCR answers with the dial at a strength."""
        adapters.activate(self.model, DCR)
        with turned(self.model, DCR, self.dial, strength), self._below_kept():
            yield

    @contextmanager
    def _below_kept(self) -> Iterator[None]:
        """Within the block, in which DCR answers and nothing below the dial changes, prompts that were read before go
        through the dial's layer and later ones alone."""
        self.model.prompt_cache = self._below
        try:
            yield
        finally:
            self.model.prompt_cache = None

    def _keep(self) -> None:
        write_state(self._kept, self.folder / READINGS)
        self.progress(1)

    def _by_side(self, values: list[Any]) -> list[list[Any]]:
        return [values[: self.pairs], values[self.pairs : 2 * self.pairs]]

    def stock(self) -> tuple[float, float]:
        """The stock model's refusal rates of toxic and of seemingly toxic prompts, from judged answers."""
        if self._kept["stock"] is None:
            with adapters.stock(self.model):
                measured = measure(self.model, self._prompts[: 2 * self.pairs], self._tokens)
            self._kept["stock"] = self._by_side([row["refused"] for row in measured])
            self._keep()
        toxic, seemingly_toxic = np.mean(self._kept["stock"], 1).tolist()
        return toxic, seemingly_toxic

    def recall(self, measured: dict[str, bool]) -> None:
        """Count what a setting was chosen by (``counted``). What was measured after it counts once it is asked for.
        Raises UserError where it is not there."""
        kept, self._asked = self._kept["at"], dict(measured)
        if any(("refused" if judged else "log_odds") not in kept.get(at, ()) for at, judged in self._asked.items()):
            raise damaged(self.folder / READINGS, CURE)

    @property
    def counted(self) -> dict[str, bool]:
        """The strengths that were asked for, and whether for judged answers."""
        return dict(self._asked)

    def read(self, strength: float, judged: bool = False) -> None:
        """Measure the pairs at a strength: log-odds, and if ``judged`` answers."""
        at = str(strength + 0.0)  # -0.0 is 0.0
        row = self._kept["at"].setdefault(at, {})
        self._asked[at] = judged or self._asked.get(at, False)
        if judged and "refused" not in row:
            with self._at(strength):
                measured = measure(self.model, self._prompts[: 2 * self.pairs], self._tokens)
            row.setdefault("log_odds", self._by_side([one["refusal_log_odds"] for one in measured]))
            row["refused"] = self._by_side([one["refused"] for one in measured])
        elif "log_odds" not in row:
            with self._at(strength):
                answers = answer(self.model, self._rows[: 2 * self.pairs], max_new_tokens=0)
            row["log_odds"] = self._by_side([one.refusal_log_odds for one in answers])
        else:
            return
        self._keep()

    def plain(self, strength: float) -> list[bool]:
        """Whether each plain prompt is refused at a strength that was measured. They are answered here alone: answers
        that refuse nothing run to their last token, and would make every measurement an eighth longer."""
        row = self._kept["at"][str(strength + 0.0)]
        if "plain_refused" not in row:
            with self._at(strength):
                measured = measure(self.model, self._prompts[2 * self.pairs :], self._tokens)
            row["plain_refused"] = [one["refused"] for one in measured]
            self._keep()
        return list(row["plain_refused"])

    def loss(self, strength: float) -> float:
        """Nats a token by which the answers to plain prompts at strength 0 are less likely at this one; 0 where there
        are no plain prompts."""
        if self._usual is None:
            rows = self._rows[2 * self.pairs :]
            with self._at(0):
                texts = [said.text for said in answer(self.model, rows, self._tokens)]
            encoded = self.model.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
            self._usual = [both for both in zip(rows, encoded, strict=True) if both[1]]
            self._usual_loss = self._loss_at(0)
        return self._loss_at(strength) - self._usual_loss

    def _loss_at(self, strength: float) -> float:
        if not self._usual:
            return 0.0
        with self._at(strength):
            return -torch.cat(log_likelihoods(self.model, self._usual)).mean().item()

    def curve(self, intervals: bool = False) -> TradeOff:
        """Refusal rates along the strengths that were measured, with or without intervals."""
        readings = []
        for at, judged in self._asked.items():
            row = self._kept["at"][at]
            refused = np.array(row["refused"]) if judged else None
            readings.append(Reading(float(at), np.array(row["log_odds"]), refused))
        return fit_trade_off(readings, trade_off.RESAMPLES if intervals else 0)

    @property
    def strengths(self) -> list[float]:
        """Those that were measured."""
        return [float(at) for at in self._asked]

    @property
    def gains(self) -> dict[str, float]:
        """The AUROC of the pairs' log-odds by each gain that was tried."""
        return dict(self._kept["gains"])

    @property
    def judged(self) -> list[float]:
        """The strengths whose answers were judged."""
        return [float(at) for at, judged in self._asked.items() if judged]
