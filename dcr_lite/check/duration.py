"""How long a run takes: the operations of its parts, over the operations a second that a few steps have shown.

Counted are 2 per weight and token forward, and as many again backward. Whatever the trial leaves out (layers, rows,
steps) enters here, so what few layers do not do counts: the first trained layer hands no gradient on, and behind the
attention of the last one only the places that are read are computed.
"""

from dataclasses import dataclass
from statistics import fmean

from dcr_lite.check.rows import Lengths
from dcr_lite.method.contrastive import GEOMETRY_PAIRS, REFERENCE_PAIRS
from dcr_lite.method.contrastive import OBSERVATIONS as STAGE1_OBSERVATIONS
from dcr_lite.method.dial_fitting import PAIRS as DIAL_PAIRS
from dcr_lite.method.safety_sft import OBSERVATIONS
from dcr_lite.model.shapes import Shape
from dcr_lite.names import BASELINE, models_of
from dcr_lite.run.found_settings import STOCK_PAIRS, asks_for_answers, assumed
from dcr_lite.run.own_voice import OWN_TOKENS
from dcr_lite.run.plan import DIAL_ANSWERS, DIAL_READINGS
from dcr_lite.settings import FOUND, Settings

OPENINGS = 12  # tokens behind each prompt from which the refusal probability is read, about
Rows = list[tuple[int, int]]


@dataclass(frozen=True)
class Counter:
    """Counts operations for a model of this shape, cut behind decoder layer ``layer`` (L).

    first: the first layer that stage 1 trains. prefix: the tokens that all rows share, which are computed once a step.
    at_once: those that go through stage 1 in one pass; more go through it once more, forward, for GradCache.
    """

    shape: Shape
    layer: int
    prefix: int
    at_once: float = float("inf")
    first: int = 0

    def forward(self, layers: int, tokens: float, read: float) -> float:
        """So many tokens through the decoder layers, of whose last states ``read`` are needed."""
        if layers == 0:
            return 0.0
        every, attention = self._weights
        return 2 * (tokens * ((layers - 1) * every + attention) + read * (every - attention))

    def training(self, layers: int, tokens: float, read: float) -> float:
        """The same forward and backward, with adapters on all of these layers."""
        _, attention = self._weights
        return 2 * self.forward(layers, tokens, read) - (2 * tokens * attention if layers else 0.0)

    @property
    def _weights(self) -> tuple[int, int]:
        """Of a layer, and those of them that give queries, keys and values."""
        sizes = [i * o for i, o in self.shape.maps]
        return sum(sizes), sum(sizes[:3])

    def stage1(self, prompts: float, own_tokens: float) -> float:
        """A step of stage 1 on prompts with so many tokens of their own behind the shared prefix."""
        tokens = self.prefix + prompts * own_tokens
        trained = self.layer + 1 - self.first
        again = self.forward(trained, tokens, prompts) if tokens > self.at_once else 0.0
        return self.training(trained, tokens, prompts) + again

    def refinement(
        self, steps: int, pairs: int, batch: int, own_tokens: float, observed: int, afterwards: int = 0
    ) -> float:
        """So many steps of stage 1 on a batch of prompts: what enters its first layer once, that of prompts which are
        read ``afterwards`` too, and the states of ``observed`` prompts along it."""
        once = (min(max(steps * batch, afterwards), 2 * pairs) + observed) * own_tokens
        along = (1 + STAGE1_OBSERVATIONS) * observed
        read = self.forward(self.layer + 1 - self.first, along * own_tokens, along)
        return self.forward(self.first, once, once) + read + steps * self.stage1(batch, own_tokens)

    def sft(self, rows: float, own_tokens: float, answer_tokens: float, below: int) -> float:
        """A step of safety SFT of the layers from number ``below`` on."""
        answers = rows * answer_tokens
        trained = self.training(self.shape.layers - below, self.prefix + rows * own_tokens, answers)
        return trained + 2 * self.vocabulary(answers)

    def vocabulary(self, tokens: float) -> float:
        """Logits of so many tokens, forward."""
        return 2 * tokens * self.shape.vocabulary * self.shape.width

    def answers(self, prompts: float, own_tokens: float, answer_tokens: int) -> float:
        """Answers to prompts, with the probability that each begins with a refusal; that alone for no tokens."""
        new = OPENINGS + answer_tokens
        tokens = prompts * (own_tokens + new)
        return self.forward(self.shape.layers, tokens, tokens) + self.vocabulary(prompts * (1 + new))


def first_trained(settings: Settings) -> int:
    """The number of the first layer that stage 2 of DCR trains."""
    return settings.layer + 1 if settings.sft_layers == "above" else 0


def operations(
    shape: Shape, settings: Settings, lengths: Lengths, prefix: int, at_once: float = float("inf")
) -> dict[str, float]:
    """Operations of the parts of a whole run, under the names that memory.py gives them. prefix, at_once: see
    ``Counter``. What is still to be found is assumed (see ``found_settings.assumed``), and finding it counted."""
    asked, settings = settings, assumed(settings, shape.layers, shape.width)
    count = Counter(shape, settings.layer, prefix, at_once, settings.first_refined)
    prompt = fmean(tokens for pair in lengths.pairs for tokens in pair) - prefix
    row = fmean(map(sum, lengths.conversations)) - prefix
    answer = fmean(tokens for _, tokens in lengths.conversations)
    held_out = fmean(lengths.held_out) - prefix
    sizes, epochs = settings.sizes, settings.sft_epochs

    # Prompts read without a gradient: for the geometry, along stage 1, and after it for the other parts.
    read_out = 2 * (min(REFERENCE_PAIRS, len(lengths.pairs)) + lengths.development)
    read = 2 * min(GEOMETRY_PAIRS, len(lengths.pairs)) + 2 * (read_out + len(lengths.held_out)) + lengths.refusals
    batch = 2 * min(settings.contrastive_batch // 2, len(lengths.pairs))
    stage1 = count.forward(settings.layer + 1, read * prompt, read) + _search(count, asked, lengths, prompt)
    for_dial = 2 * DIAL_PAIRS if settings.dial != "none" else 0
    stage1 += count.refinement(settings.refining_steps, len(lengths.pairs), batch, prompt, read_out, for_dial)

    def sft(rows: int, below: int) -> float:
        steps = -(-rows // settings.sft_batch)
        trained = epochs * steps * count.sft(rows / steps, row, answer, below)
        watched = count.answers((OBSERVATIONS + 1) * lengths.watched, prompt, 0)
        return trained + epochs * count.forward(below, rows * row, rows * row) + watched

    parts = {"stage1": stage1}
    if settings.stage2 != "no":
        parts["stage2"] = sft(sizes["instructions"] + sizes["refusals"], first_trained(settings))
    if BASELINE in settings.compare_with:
        parts[BASELINE] = sft(sizes["instructions"] + sizes["baseline_refusals"], 0)
    models = len(models_of(settings.compare_with))
    answers = models * count.answers(len(lengths.held_out), held_out, settings.answer_tokens)
    return parts | {"evaluation": answers + _along_the_way(count, asked, settings, lengths, prompt)}


def _search(count: Counter, asked: Settings, lengths: Lengths, prompt: float) -> float:
    """Of finding L, where it is not given: the states of every layer."""
    if asked.layer != FOUND:
        return 0.0
    read = 2 * (min(GEOMETRY_PAIRS, len(lengths.pairs)) + lengths.development)
    return count.forward(count.shape.layers, read * prompt, read)


def _along_the_way(count: Counter, asked: Settings, settings: Settings, lengths: Lengths, prompt: float) -> float:
    """Of the answers that are not measured: the stock model's to training prompts, its own to general instructions,
    and those by which the dial is set; and of what the dial is fitted to."""
    answers = 0.0
    if asks_for_answers(asked):
        answers += count.answers(2 * STOCK_PAIRS, prompt, settings.answer_tokens)
    if settings.answers == "own" and (settings.stage2 != "no" or BASELINE in settings.compare_with):
        answers += count.answers(settings.sizes["instructions"], prompt, OWN_TOKENS)
    if settings.dial != "none":
        fitted = 2 * min(DIAL_PAIRS, len(lengths.pairs))
        answers += count.forward(settings.layer + 1 - settings.first_refined, fitted * prompt, fitted)
        answers += DIAL_READINGS * count.answers(2 * lengths.development, prompt, 0)
        if count.prefix:  # rows are packed, and what the layers below L make of them is kept
            again = (DIAL_READINGS - 1) * 2 * lengths.development * (prompt + OPENINGS)
            answers -= count.forward(settings.layer, again, again)
        answers += DIAL_ANSWERS * count.answers(2 * lengths.development, prompt, settings.answer_tokens)
    return answers


def seconds(operations_of: dict[str, float], rates: dict[str, float]) -> dict[str, float]:
    """Seconds of each part, at the operations a second that its steps have shown, and their sum as "total"."""
    parts = {name: operations_of[name] / rate for name, rate in rates.items()}
    return parts | {"total": sum(parts.values())}
