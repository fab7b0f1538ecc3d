"""Answers and refusal scores of many prompts, in batches of similar length behind their shared prefix."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor

from dcr_lite.model.chat import decode_answers
from dcr_lite.model.configuration import stated_ends
from dcr_lite.model.decoding import (
    Decoding,
    Rows,
    Tokens,
    append,
    logits_after,
    prompts_of,
    shared_cache,
    start_decoding,
)
from dcr_lite.model.double import in_double
from dcr_lite.model.in_passes import in_passes
from dcr_lite.model.loading import Model, require_finite
from dcr_lite.model.memory import PROMPT_TOKENS
from dcr_lite.model.packing import passes

CHECK_EVERY = 4  # tokens between checks of whether an answer can stop
LEAST_LOG_P = -1e4  # nats, of openings that a contrast rules out (their logits are -inf): scores stay finite, and tied

# (logits (rows, vocabulary), the rows' numbers, how many tokens each answer has so far) -> tokens (rows,)
Choose = Callable[[Tensor, Sequence[int], int], Tensor]


def most_probable(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """Greedy decoding: the token with the highest logit."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class Sampled:
    """Sampling at temperature 1: a token from the softmax of the logits, none left out.

    The draw depends on the seed, on the row's number and on the step alone, so that batches, and rows that end, change
    no other row's answer.
    """

    seed: int

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        # Seeded by a text, Python's generator mixes its digest: neighbouring rows and steps have nothing in common.
        draws = [random.Random(f"{self.seed} {row} {step}").random() for row in rows]
        below = logits.cpu().double().softmax(-1).cumsum(-1)  # on the CPU: a Mac's GPU has no float64
        # Of the total and not of 1, which rounding can leave just out of reach.
        wanted = torch.tensor(draws, dtype=torch.float64)[:, None] * below[:, -1:]
        return torch.searchsorted(below, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1).to(logits.device)


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    text: as ``decode_answers`` gives it.
    refusal_log_odds: log-odds of beginning with a refusal, read before any token is chosen.
    ended: it ended before it had all the tokens that it could have, by the model or by ``stop``.
    ids: its tokens.
    """

    text: str
    refusal_log_odds: float
    ended: bool
    ids: tuple[int, ...] = ()


def refusal_log_odds(decoding: Decoding) -> Tensor:
    """Log-odds (batch,) that the answer begins with one of ``model.openings``."""
    model = decoding.model
    encoded = model.tokenizer(list(model.openings), add_special_tokens=False)["input_ids"]
    openings = sorted({tuple(ids) for ids in encoded})
    following: dict[Tokens, list[int]] = {}
    for opening in openings:
        for i, token in enumerate(opening):
            following.setdefault(opening[:i], []).append(token)
    beginnings = sorted(following)  # the empty one first
    log_p: dict[Tokens, Tensor] = {}  # of the last token of each beginning, given those before
    every = chain([decoding.logits], logits_after(decoding, beginnings[1:]))
    for beginning, logits in zip(beginnings, every, strict=True):
        exact = in_double(logits)  # of a refusal that is all but certain little else is left
        total = exact.logsumexp(-1)
        log_p |= {(*beginning, token): exact[:, token] - total for token in following[beginning]}
    refusing = [torch.stack([log_p[o[: i + 1]] for i in range(len(o))]).sum(0) for o in openings]
    least = LEAST_LOG_P if model.contrast else None
    log_any = torch.stack(refusing).logsumexp(0).clamp(least, -1e-12)
    return log_any - torch.log(-torch.expm1(log_any))  # log p - log (1 - p)


def end_tokens(model: Model) -> Tensor:
    """Every token that ends an answer: the tokenizer's and those of the model's own generation settings."""
    own = model.tokenizer.eos_token_id
    return torch.tensor(sorted({*stated_ends(model.network), *([] if own is None else [own])}))


def _decode(
    decoding: Decoding, rows: dict[int, list[int]], most: int, stop: Callable[[str], bool] | None, choose: Choose
) -> list[list[int]]:
    """Token ids of each answer to ``rows`` by number; one that has ended, or is to ``stop``, leaves the batch."""
    ends = end_tokens(decoding.model).to(decoding.logits.device)
    answers: dict[int, list[int]] = {number: [] for number in rows}
    alive = torch.tensor(list(rows))
    for step in range(most):
        some = alive.tolist()
        token = choose(decoding.logits, some, step)
        going = ~torch.isin(token, ends)
        if stop and step and step % CHECK_EVERY == 0:
            texts = decode_answers(decoding.model.tokenizer, [rows[i] for i in some], [answers[i] for i in some])
            going &= torch.tensor([not stop(text) for text in texts], device=token.device)
        going = going.nonzero()[:, 0]
        if len(going) < len(alive):
            alive, token = alive[going.cpu()], token[going]
            if not len(alive):
                break
            decoding.keep(going)
        for row, t in zip(alive.tolist(), token.tolist(), strict=True):
            answers[row].append(t)
        if step + 1 < most:
            append(decoding, token)
    return list(answers.values())


@torch.no_grad()
def answer(
    model: Model,
    rows: list[list[int]],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[str], bool] | None = None,
    choose: Choose = most_probable,
) -> list[Answer]:
    """Answers to prompts given as token ids, in the order given. ``max_new_tokens=0`` reads only the scores.

    Prompts of similar length share a batch and what all prompts share (the chat template's beginning) is computed once.
    ``progress`` is called with the number of prompts in each finished batch. ``stop``: called now and then with the
    text of each answer so far, which ends where it returns True. ``choose``: how tokens are chosen.
    """
    model.set_training(False)
    with model.compute():
        prompts = prompts_of(model, rows)
        prefixes = [shared_cache(model, of) for of in prompts]

        def answer_together(chosen: list[int]) -> list[Answer]:
            decoding = start_decoding(model, [[of[i] for i in chosen] for of in prompts], prefixes)
            asked = [rows[i] for i in chosen]
            scores = require_finite(model, refusal_log_odds(decoding), "refusal log-odds").tolist()
            found = _decode(decoding, dict(zip(chosen, asked, strict=True)), max_new_tokens, stop, choose)
            ended = [len(ids) < max_new_tokens for ids in found]
            return list(map(Answer, decode_answers(model.tokenizer, asked, found), scores, ended, map(tuple, found)))

        return in_passes(_batches(model, prompts, max_new_tokens), answer_together, progress)


@contextmanager
def longer_answers(model: Model, planned: int, tokens: int) -> Iterator[None]:
    """Within the block answers of ``tokens`` tokens are given fewer at a time, in the memory that was planned for those
    of ``planned`` tokens."""
    at_once = model.prompts_at_once
    model.prompts_at_once = max(1, at_once * (PROMPT_TOKENS + planned) // (PROMPT_TOKENS + max(planned, tokens)))
    try:
        yield
    finally:
        model.prompts_at_once = at_once


def _batches(model: Model, prompts: list[Rows], max_new_tokens: int) -> list[list[int]]:
    """Row numbers, as many together as the plan has memory for, with the tokens to come; of one length only where
    padding would fill a sliding window. ``prompts``: those that are decoded side by side, each with a cache."""
    lengths = list(zip(*([len(row) for row in rows] for rows in prompts), strict=True))
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups = [order] if model.packs else [list(same) for _, same in groupby(order, key=lambda i: lengths[i])]
    at_once = max(1, model.prompts_at_once // len(prompts))
    most = at_once * (PROMPT_TOKENS + max_new_tokens)
    return [
        [group[k] for k in part]
        for group in groups
        for part in passes([max(lengths[i]) + max_new_tokens for i in group], most, attention=1.0, rows=at_once)
    ]
