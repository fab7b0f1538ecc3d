"""DPO, direct preference optimisation of safety SFT, in the manner of POROver.

Karaman, Zabir, Benhaim, Chaudhary, Sabuncu, Song, "POROver: Improving Safety and Reducing Overrefusal in Large Language
Models with Overgeneration and Preference Optimization", ICML 2025, arXiv 2410.12999; their repository holds no code.
The loss: Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, arXiv 2305.18290, equation 7.

For a prompt x with a preferred answer y+ and another one y-, with sums of log-probabilities over an answer's tokens,
its end among them, and with safety SFT, frozen, as the reference:

    m = [log p(y+|x) - log p(y-|x)] - [log p_ref(y+|x) - log p_ref(y-|x)],    loss = -log sigmoid(beta m)

- Both answers' log-probabilities may fall as long as that of y- falls faster, and a third answer then takes their place
  (likelihood displacement; Razin et al., 2024, arXiv 2410.08847, where DPO *for* refusals halved them). So gamma times
  the cross-entropy of y+ per token is added (Pang et al., NeurIPS 2024, arXiv 2404.19733), both log-probabilities are
  logged for each kind of prompt, and weights under which y+ has lost more than MOST_FALL are not kept. The pass goes on
  all the same: the cross-entropy can win back what was lost, which a later observation then sees.
- Refusals are short, so m follows length too: answers are cut at the same number of tokens (preferences.py).
- The margin of a preference needs its two rows alone, so they share a pass: once their log-probabilities are known, the
  loss says how much each counts, and with these weights the gradient goes back through the vocabulary a few tokens at
  a time. That is exact, as in GradCache, and takes the memory of safety SFT.
- The pass through the preferences is observed OBSERVATIONS times; of these weights, those are kept that set the refusal
  probabilities of development prompts furthest apart.

    stage = DPO("dpo", model, adapter, preferences, share=0.5, learning_rate=4e-4, seed=0, evaluate=lambda: ...)
    Loop(stage).run()

Departures from POROver: safety SFT stands for its first part, fine-tuning on several answers of a teacher; one teacher,
the stock model itself, behind a complying opening where it refuses, instead of GPT-4o filtered by Llama Guard 2; the
share of toxic preferences in the loss is set, instead of a containment threshold searched on a grid; beta, gamma and
the learning rate are constants, since the paper's were not to be had. Of a pair with one unusable side the other one is
learnt alone (preferences.py).

Why not TRL's DPOTrainer: it pads rows and computes the logits of prompts and of padding; it ends every answer, one that
was cut off too; its cross-entropy is a mean over the tokens of a batch, in which long answers outweigh refusals, and
kinds of prompts have no shares; and it is transformers' Trainer, against which loop.py gives its reasons: rows are
packed here, in 4 bits on a CPU too, and a resumed training ends bit for bit as an undisturbed one. A test has TRL's
loss and gradients beside these, where trl is installed (the extra ``benchmark``).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dcr_lite.compare.directions import Kinds, apart
from dcr_lite.compare.preferences import Preference
from dcr_lite.data.rows import Conversation
from dcr_lite.data.splits import pair_batches
from dcr_lite.measure.general_ability import log_likelihoods
from dcr_lite.model import adapters, distributed
from dcr_lite.model.answer_tokens import Tokens, answer_places, backward_through_vocabulary, log_probabilities
from dcr_lite.model.chat import encode_rows
from dcr_lite.model.hidden_states import depth, final_states
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import shared_prefix
from dcr_lite.names import BASELINE, LABELS
from dcr_lite.run import steps
from dcr_lite.run.machine import forget_peak_memory
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.settings import Settings

BETA = 0.1  # the DPO paper's
GAMMA = 1.0  # Pang et al.'s: it pulls at each token of an answer of 40 half as much as the first step's m does
LEARNING_RATE_SHARE = 0.2  # of safety SFT's, whose adapter it goes on with: a tenth to a third is usual
BATCH = 8  # preferences in a step, those of four pairs: as many as safety SFT has rows
OBSERVATIONS = 4  # along the pass, and once before it
WATCHED = 32  # preferences of each kind whose log-probabilities are observed: some thousand tokens of each answer
MOST_FALL = 1.0  # nats per token that preferred answers may lose, on average over those watched of either kind
UNTRAINED = -2.0  # below every difference of probabilities: the first weights are kept where no others may be


def margins(sums: Tensor, reference: Tensor) -> Tensor:
    """m (preferences,), from the log-probabilities (preferences, 2) of y+ and y- under the model and under the
    reference."""
    gained = sums - reference
    return gained[:, 0] - gained[:, 1]


def preference_loss(sums: Tensor, reference: Tensor, lengths: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta m) + gamma times the cross-entropy of y+ per token: (preferences,). lengths: tokens of y+
    (preferences,)."""
    return -logsigmoid(beta * margins(sums, reference)) - gamma * sums[:, 0] / lengths


def shares(toxic: Tensor, share: float) -> Tensor:
    """How much each preference counts, (preferences,), 1 on average: toxic ones, where ``toxic`` (preferences,) is
    true, have the share ``share`` of the loss, unless one kind is all there is."""
    weights = torch.where(toxic, share / max(1, int(toxic.sum())), (1 - share) / max(1, int((~toxic).sum())))
    return weights * len(toxic) / weights.sum()


class DPO:
    """DPO of an adapter on all layers, in one pass through the preferences (see ``loop.Stage``). The reference is the
    adapter as it is when the stage is made.

    share: of the toxic preferences in the loss. evaluate: gives the number by which weights are chosen.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        adapter: str,
        preferences: list[Preference],
        share: float,
        learning_rate: float,
        seed: int,
        evaluate: Callable[[], float],
    ):
        self.name, self.model, self.adapter, self.learning_rate = name, model, adapter, learning_rate
        self.evaluate = evaluate
        self.rows = encoded(model, preferences)
        self.prefix = shared_prefix([row.prompt for row in self.rows])
        self.lengths = torch.tensor([len(row.answer) for row in self.rows]).view(-1, 2)
        toxic = torch.tensor([one.toxic for one in preferences])
        self.weights = shares(toxic, share)
        self.watched = {
            label: places[:WATCHED]
            for label, places in zip(LABELS, (toxic.nonzero()[:, 0], (~toxic).nonzero()[:, 0]), strict=False)
            if len(places)
        }
        adapters.activate(model, adapter)
        self.reference = self.sums(torch.arange(len(preferences)))
        self.parameters = adapters.train_only(model, adapter, range(depth(model.network)))
        self.batches = batches(preferences, seed)
        self.steps = len(self.batches)
        self.observe_every = -(-self.steps // OBSERVATIONS)

    @property
    def tried(self) -> int:
        """The observations of which the best is kept, the first one apart."""
        return -(-self.steps // self.observe_every)

    def sums(self, chosen: Tensor) -> Tensor:
        """The log-probabilities of y+ and y- of the chosen preferences, without gradient, on the CPU: (chosen, 2)."""
        self.model.set_training(False)
        rows = [self.rows[2 * i + side] for i in chosen.tolist() for side in (0, 1)]
        log_p = log_likelihoods(self.model, [(row.prompt, row.answer) for row in rows])
        return torch.stack([of_tokens.sum() for of_tokens in log_p]).view(-1, 2)

    def step(self, number: int) -> float:
        """One batch's gradients, in passes that hold both answers of each preference. Returns the loss."""
        batch = self.batches[number]
        own = distributed.share(batch)
        both = [self.rows[2 * i].ids + self.rows[2 * i + 1].ids[self.prefix :] for i in own]
        parts = self.model.passes(both, shared=self.prefix)
        return distributed.total(sum(self._pass([own[k] for k in part], len(batch)) for part in parts))

    def _pass(self, chosen: list[int], n: int) -> float:
        """The gradients of some preferences of a batch of ``n``, and their part of its loss."""
        rows = [self.rows[2 * i + side] for i in chosen for side in (0, 1)]
        batch = self.model.batch([row.ids for row in rows], self.prefix)
        places, targets = answer_places(batch, rows)
        with self.model.compute():
            states = final_states(self.model.network, batch, places)
        log_p = log_probabilities(self.model, states, targets).cpu()
        lengths = self.lengths[chosen]
        sums = torch.stack([of_row.sum() for of_row in log_p.split(lengths.flatten().tolist())]).view(-1, 2)
        losses = preference_loss(sums.requires_grad_(), self.reference[chosen], lengths[:, 0], BETA, GAMMA)
        loss = (self.weights[chosen] * losses).sum() / n
        (gradient,) = torch.autograd.grad(loss, sums)
        weights = -gradient.flatten().repeat_interleave(lengths.flatten())
        backward_through_vocabulary(self.model, states, targets, weights.to(states.device))
        return loss.item()

    def observe(self, step: int) -> dict[str, Any]:
        """How far apart development prompts are, and of the preferences watched of each kind the mean log-probability
        of a token of y+ and of y-; "best" as the module says."""
        seen: dict[str, Any] = {"apart": self.evaluate()}
        fallen = 0.0
        for label, chosen in self.watched.items():
            now, before = self.sums(chosen) / self.lengths[chosen], self.reference[chosen] / self.lengths[chosen]
            seen[f"chosen_{label}"], seen[f"rejected_{label}"] = now.mean(0).tolist()
            fallen = max(fallen, float((before - now)[:, 0].mean()))
        if step == 0:
            seen["best"] = UNTRAINED
        elif fallen <= MOST_FALL:
            seen["best"] = seen["apart"]
        return seen


def encoded(model: Model, preferences: list[Preference]) -> list[Tokens]:
    """The rows of y+ and y- of each preference in turn."""
    rows = [
        Conversation(one.prompt, said.text, ends=said.ends, before=one.before)
        for one in preferences
        for said in (one.chosen, one.rejected)
    ]
    return [Tokens(*row) for row in encode_rows(model.tokenizer, rows, model.window)]


def batches(preferences: list[Preference], seed: int) -> list[list[int]]:
    """The numbers of the preferences in the batch of each step of one pass. Both sides of a pair share a batch."""
    of_pair: dict[int, list[int]] = {}
    for i, one in enumerate(preferences):
        of_pair.setdefault(one.pair, []).append(i)
    pairs = list(of_pair.values())
    n_steps = -(-len(pairs) // (BATCH // 2))
    return [[i for k in some for i in pairs[k]] for some in pair_batches(len(pairs), BATCH, n_steps, seed)]


def train(
    run: RunFolder, model: Model, name: str, preferences: list[Preference], share: float, development: Kinds,
    settings: Settings,
) -> None:  # fmt: skip
    """DPO of the adapter of safety SFT, which is the active one, as the part ``name`` of the run, once; ``tried`` is
    noted among its numbers."""
    if run.finished(name):
        return steps.restore(run, model, name, BASELINE)
    forget_peak_memory()
    model.plan_passes(BASELINE)  # two rows at a time at least, which preferences.py sees to
    rate = LEARNING_RATE_SHARE * settings.sft_learning_rate
    stage = DPO(name, model, BASELINE, preferences, share, rate, settings.seed, lambda: apart(model, development))
    steps.train(run, stage, f"DPO, {share:g} toxic", numbers={"tried": stage.tried})
    return adapters.activate(model, BASELINE)
