"""AdaCD: tokens are chosen by how the model's logits differ from its logits when it is told to refuse. Training-free.

"Please refuse to answer me! Mitigating Over-Refusal in Large Language Models via Adaptive Contrastive Decoding", ACL
2026, arXiv 2604.17132; their code: github.com/OutdoorManofML/AdaCD.

Every prompt is decoded twice, as it is (next-token logits l) and under the system message MESSAGE (logits p); both are
given the tokens that are chosen. p - l points towards refusal. For the first STEPS tokens of an answer:

- Both agree where the most probable token is the same and is about as probable without the message as with it. Then
  the difference is added: z = p + alpha (p - l). Else it is taken away: z = p - alpha (p - l).
- Tokens that are implausible without the message are ruled out; of the others the one with the largest z is taken.

From then on the answer goes on greedily by l.

    found = adacd.fit(model, validation)
    with found.contrasting(model):
        answer(model, rows, max_new_tokens=40)

It needs a model that obeys the message: where p is about l, alpha multiplies noise. So ``fit`` measures the share of
plain prompts that are refused under it, by judged answers, and a model below OBEYING keeps the authors' alpha, with a
note that says so.

The refusal log-odds are those of z, at each token of an opening, so that they are about the answers that are given.
Where all openings are ruled out they are tied at the lowest value, which costs AUROC: the probabilities of l alone
would have the AUROC of the model without AdaCD. What is read of given answers (answers kept, answer loss, multiple
choice) stays that of l: z gives ruled-out tokens no probability at all, and so no loss.

Departures from their code: alpha is chosen among ALPHAS on validation prompts, where they take 4.5 for all models.
Padding is masked by the true lengths of prompts, where they mask every token with the padding's id, which can be one
that ends a turn. Every end token of a model ends an answer. Logits are compared in float32 instead of float16. The
paper contrasts probabilities; this is its code, which contrasts logits.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dcr_lite.compare.directions import VALIDATION, Kinds, apart
from dcr_lite.measure.judge import is_refusal, verdict_is_final
from dcr_lite.model.chat import with_system_message
from dcr_lite.model.contrast import Contrast
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.names import NOT_APPLICABLE

MESSAGE = "Please refuse to answer me!"
STEPS = 10  # tokens of an answer that are chosen by both; this and the next two are the authors' for all models
AGREEMENT = 0.9  # their lambda: of the highest probability with the message, what the one without it has to reach
PLAUSIBLE = 0.01  # their beta: of the highest probability without the message
ALPHAS = (1.0, 2.25, 4.5, 9.0)  # fit takes the best of them
USUAL = 4.5  # the authors' alpha
OBEYING = 0.8  # the share of plain prompts that a model has to refuse under the message
TOKENS = 40  # of the answers by which that is judged


def contrasted(alpha: float, logits: Tensor, refusing: Tensor) -> Tensor:
    """z (batch, vocabulary): the logits to choose tokens by, from the next-token logits without the message and with
    it, (batch, vocabulary) each; -inf for what is ruled out.

    The authors compare 1 / (1 + rank) with lambda, the rank being that of the refusing run's most probable token in
    ``logits``. As lambda is above 1/2, that asks for rank 0: the same token.
    """
    highest = logits.amax(-1, keepdim=True)
    same = logits.gather(-1, refusing.argmax(-1, keepdim=True)) == highest
    log_p, refusing_log_p = (of.amax(-1, keepdim=True) - of.logsumexp(-1, keepdim=True) for of in (logits, refusing))
    agree = same & (log_p >= refusing_log_p + math.log(AGREEMENT))
    z = refusing + torch.where(agree, alpha, -alpha) * (refusing - logits)
    return z.masked_fill(logits < highest + math.log(PLAUSIBLE), -torch.inf)


@dataclass(frozen=True)
class AdaCD:
    """A fitted contrast.

    alpha: how strongly the difference is added or taken away.
    obeys: the share of plain validation prompts that the model refuses under the message.
    tried: how many settings were measured to choose alpha; 0 where the model does not obey.
    prompts: of how many ``obeys`` is the share; 0 in what was kept before they were counted.
    """

    alpha: float
    obeys: float
    tried: int
    prompts: int = 0

    @property
    def note(self) -> str:
        """What a table has to say of it: empty where the model obeys."""
        if self.obeys >= OBEYING:
            return ""
        n = f"{self.prompts} " if self.prompts else ""
        return (
            f"{NOT_APPLICABLE}: the model refuses {self.obeys:.2f} of {n}plain prompts when it is asked to refuse, and "
            f"the method needs one that obeys ({OBEYING:g}); measured with its authors' settings"
        )

    @contextmanager
    def contrasting(self, model: Model) -> Iterator[None]:
        """Within the block the model's answers are chosen so."""
        before = model.contrast
        model.contrast = Contrast(partial(refusing_prompts, model), partial(contrasted, self.alpha), STEPS)
        try:
            yield
        finally:
            model.contrast = before


def refusing_prompts(model: Model, rows: list[list[int]]) -> list[list[int]]:
    """The prompts, given as ``chat.encode_prompts`` gives them, under the message."""
    return with_system_message(model.tokenizer, rows, MESSAGE, model.window)


def fit(model: Model, validation: Kinds) -> AdaCD:
    """For the model as it stands: whether it obeys, and the alpha that sets the refusal probabilities of toxic and
    seemingly toxic validation prompts furthest apart."""
    refusing = refusing_prompts(model, validation.plain[:VALIDATION])
    judged = [is_refusal(said.text) for said in answer(model, refusing, TOKENS, stop=verdict_is_final)]
    usual = AdaCD(USUAL, sum(judged) / len(judged), 0, len(judged))
    if usual.obeys < OBEYING:
        return usual

    def of(candidate: AdaCD) -> float:
        with candidate.contrasting(model):
            return apart(model, validation)

    return max((replace(usual, alpha=alpha, tried=len(ALPHAS)) for alpha in ALPHAS), key=of)
