"""Greedy answers that grow together, a token at a time: others can join them between two steps, and any can leave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dcr_lite.model.chat import decode_answers
from dcr_lite.model.decoding import Prefix, Rows, append, prompts_of, shared_cache, start_decoding
from dcr_lite.model.generation import CHECK_EVERY, end_tokens, refusal_log_odds
from dcr_lite.model.loading import Model, require_finite

SetRows = Callable[[Sequence[Any]], None]


@dataclass(eq=False)
class Growing:
    """An answer while it grows.

    row: token ids of the prompt. most: tokens that the answer can have. stop: called now and then with the text so far;
        where it returns True the answer ends. which: names the model that gives it, where the network is several.
    ids: its tokens. refusal_log_odds: of beginning with a refusal, read before any token is chosen; None until then.
    ended: by the model, by ``stop``, with the last token that it can have, or by whoever no longer wants it.
    """

    row: list[int]
    most: int
    stop: Callable[[str], bool] | None = None
    which: Any = None
    ids: list[int] = field(default_factory=list)
    refusal_log_odds: float | None = None
    ended: bool = False


class GrowingTogether:
    """Answers that are decoded as one batch. What one of them says does not depend on the others, nor on when they come
    and go.

    answers: those that are still growing. joins: whether another batch can join.
    """

    @torch.no_grad()
    def __init__(self, model: Model, answers: list[Growing], set_rows: SetRows = lambda rows: None):
        """Begin all of ``answers``; one that has tokens already goes on from there. Models that do not pack take
        prompts of one length (see ``generation.answer``). set_rows: called with what the rows of the passes that
        follow are answered by, ``which`` of each answer, or each that there is, once.

        Raises UserError where a score is not finite.
        """
        model.set_training(False)
        self.model, self.answers, self._set_rows = model, answers, set_rows
        with model.compute():
            prompts = prompts_of(model, [answer.row + answer.ids for answer in answers])
            prefixes = [self._shared(of) for of in prompts] if len(answers) > 1 else []
            set_rows([answer.which for answer in answers])
            self._decoding: Any = start_decoding(model, prompts, prefixes)
            if any(answer.refusal_log_odds is None for answer in answers):
                odds = require_finite(model, refusal_log_odds(self._decoding), "refusal log-odds").tolist()
                for answer, value in zip(answers, odds, strict=True):
                    if answer.most == 0:
                        answer.ended = True
                    if answer.refusal_log_odds is None:
                        answer.refusal_log_odds = value
        self._ends = set(end_tokens(model).tolist())
        self._keep_growing()

    def _shared(self, rows: Rows) -> Prefix:
        """The cache of what all rows share: computed once for each model, and of each row that of its own."""
        which = list(dict.fromkeys(answer.which for answer in self.answers))
        self._set_rows(which)
        if len(which) == 1:
            return shared_cache(self.model, rows)
        place = torch.tensor([which.index(answer.which) for answer in self.answers], device=self.model.device)
        return [(keys[place], values[place]) for keys, values in shared_cache(self.model, rows, len(which))]

    @property
    def joins(self) -> bool:
        return bool(self._decoding.joins)

    def join(self, other: "GrowingTogether") -> None:
        """Go on with the answers of ``other`` as well; it is not to be used any more."""
        if self.answers and other.answers:
            self._decoding.join(other._decoding)
        elif other.answers:
            self._decoding = other._decoding
        self.answers = self.answers + other.answers

    @torch.no_grad()
    def step(self) -> None:
        """Each answer that has not ended gets its most probable token, or ends."""
        self._keep_growing()
        if not self.answers:
            return
        token = self._decoding.logits.argmax(-1)
        for answer, chosen in zip(self.answers, token.tolist(), strict=True):
            if chosen in self._ends or self._stops(answer):
                answer.ended = True
                continue
            answer.ids.append(chosen)
            if len(answer.ids) == answer.most:
                answer.ended = True
        token = token[self._keep_growing()]
        if self.answers:
            self._set_rows([answer.which for answer in self.answers])
            with self.model.compute():
                append(self._decoding, token)

    def _stops(self, answer: Growing) -> bool:
        if answer.stop is None or not answer.ids or len(answer.ids) % CHECK_EVERY:
            return False
        return answer.stop(decode_answers(self.model.tokenizer, [answer.row], [answer.ids])[0])

    def _keep_growing(self) -> Tensor:
        """Those that have ended leave; the places of the others among those that there were, (answers,)."""
        places = [i for i, answer in enumerate(self.answers) if not answer.ended]
        growing = torch.tensor(places, dtype=torch.long, device=self._decoding.logits.device)
        if len(places) < len(self.answers):
            self.answers = [self.answers[i] for i in places]
            if places:
                self._decoding.keep(growing)
        return growing
