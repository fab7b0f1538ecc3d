"""A recipe's geometry on a card: peak memory against the estimate, tokens a second against plain transformers + peft.

    python benchmarks/card.py                                   # Llama 3 8B's shape, random weights in 4-bit NF4
    python benchmarks/card.py --model Qwen/Qwen2.5-1.5B --json card.json

Weights and words are random, since neither changes time or memory; the model is made on the card layer by layer, and
nothing is fetched or written. Stage 1 takes the package's own step on 64 prompts of 64 tokens, safety SFT the package's
own step on 8 rows of 512. The plain way does the same work with the whole model on padded rows: all hidden states for
stage 1, the mean loss over answer tokens for safety SFT. Both take turns on one model, in passes of as many tokens as
the estimate allows for --memory GB, however large the card is: a card of that size can measure its own claim. The peak
is what torch has allocated; the estimate beside it leaves out the memory that CUDA itself takes.

Not run on a card yet.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from _measure import Case, Outcome, Result, Step, finish, in_turns, peak_memory, rates
from _sides import ADAPTER, RANK, batch_loss, padded_states

from dcr_lite.check.random_model import answer_of, prompts_of, random_model
from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement, encode_pairs, stock_geometry
from dcr_lite.method.gradcache import GradCache
from dcr_lite.method.losses import supervised_contrastive
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters, memory, shapes
from dcr_lite.model.chat import encode_conversations, encode_prompts
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import RESERVE
from dcr_lite.model.packing import pad
from dcr_lite.model.shapes import Shape
from dcr_lite.run.recipes import find_recipe, load_recipe
from dcr_lite.run.report import markdown_table

SETTINGS = load_recipe(find_recipe("smollm2_135m")).SETTINGS
TEMPLATE = 5  # tokens of Llama 3's chat template before every prompt: all rows share them

Way = Callable[["Card", Model], Step]  # one way of doing the work, on a model that others use as well


@dataclass
class Card(Case):
    """What to measure."""

    model: str = "unsloth/llama-3-8b"
    """One of the recipes' models, or a folder, for its shape."""
    layers: int | None = None
    """Decoder layers, to try the script with fewer; unset: those of the model."""
    prompts: int = 64
    """Prompts in a step of stage 1."""
    prompt_tokens: int = 64
    """Tokens of a prompt."""
    rows: int = 8
    """Rows in a step of safety SFT."""
    row_tokens: int = 512
    """Tokens of a row; half of them are the answer's."""
    memory: float = 12.0
    """GB free on the card that the passes are planned for."""


def shape_of(case: Card) -> Shape:
    """The model's shape, with the decoder layers of the case."""
    shape = shapes.shape_of(case.model)
    return replace(shape, layers=case.layers or shape.layers)


def build(case: Card, precision: torch.dtype) -> Model:
    """A random model of the shape in NF4 with an adapter, as a run loads one."""
    model = random_model(shape_of(case), case.where, precision, four_bit=True, seed=case.seed)
    adapters.add_adapter(model, ADAPTER, RANK, case.seed)
    return model


def half(case: Card) -> int:
    """L: half the depth."""
    return shape_of(case).layers // 2


def estimate(case: Card) -> dict[str, tuple[float, int]]:
    """(estimated peak in GB, with CUDA's own memory; tokens of a pass) of each part of a run."""
    settings = replace(
        SETTINGS, model=case.model, layer=half(case), contrastive_batch=case.prompts, sft_batch=case.rows
    )
    parts = memory.needs(shape_of(case), settings, True, case.timed_precision.itemsize)
    found = memory.fit(parts, case.memory * 1e9, case.model, insist=False)
    return {name: (need.total(found.units[name]) / 1e9, found.units[name]) for name, need in found.needs.items()}


def stage1(case: Card, model: Model) -> Step:
    """The package's step of stage 1."""
    prompts = prompts_of([case.prompt_tokens] * case.prompts, TEMPLATE)
    pairs = [Pair(a, b) for a, b in zip(prompts[::2], prompts[1::2], strict=True)]
    steps = case.repetitions + 2
    config = ContrastiveConfig(half(case), supervised_contrastive(0.5), "batch", False, steps, case.prompts, 1e-4)
    model.tokens_per_pass = estimate(case)["stage1"][1]
    geometry = stock_geometry(model, encode_pairs(model, pairs), config)
    stage = ContrastiveRefinement(model, ADAPTER, pairs, pairs[:2], config, geometry, case.seed)
    model.network.train()
    return lambda i: {"loss": stage.step(i)}


def conversations(case: Card) -> list[Conversation]:
    """The rows of a step of safety SFT."""
    own = case.row_tokens // 2
    prompts = prompts_of([case.row_tokens - own] * case.rows, TEMPLATE)
    return [Conversation(prompt, answer_of(own, i)) for i, prompt in enumerate(prompts)]


def sft(case: Card, model: Model) -> Step:
    """The package's step of safety SFT on all layers."""
    model.tokens_per_pass = estimate(case)["safety_sft"][1]
    config = SafetySFTConfig(-1, case.repetitions + 2, case.rows, 1e-4)
    stage = SafetySFT("safety_sft", model, ADAPTER, conversations(case), config, case.seed)
    model.network.train()
    return lambda i: {"loss": stage.step(i)}


def with_plain_attention(model: Model, step: Step) -> Step:
    """The step with the library's own attention, and the package's again after it."""
    own = model.network.config._attn_implementation

    def plain(i: int) -> Outcome:
        model.network.set_attn_implementation("sdpa")
        try:
            return step(i)
        finally:
            model.network.set_attn_implementation(own)

    return plain


def plain_stage1(case: Card, model: Model) -> Step:
    """Stage 1 from the whole model: hidden states of every layer, padded rows, parts through GradCache."""
    rows = encode_prompts(
        model.tokenizer, prompts_of([case.prompt_tokens] * case.prompts, TEMPLATE), case.prompt_tokens
    )
    size = max(1, estimate(case)["stage1"][1] // max(map(len, rows)))
    parts = [list(range(k, min(k + size, len(rows)))) for k in range(0, len(rows), size)]

    def encode(part: list[list[int]]) -> torch.Tensor:
        return padded_states(model, part, half(case), logits_to_keep=1)

    def step(i: int) -> Outcome:
        cache = GradCache(encode, rows, parts)
        loss = batch_loss(cache.states)
        loss.backward()
        cache.backward()
        return {"loss": loss.item()}

    return with_plain_attention(model, step)


def plain_sft(case: Card, model: Model) -> Step:
    """Safety SFT from the whole model: padded rows and the library's own loss."""
    chosen = conversations(case)
    prompts, responses = [r.prompt for r in chosen], [r.response for r in chosen]
    rows = encode_conversations(model.tokenizer, prompts, responses, case.row_tokens)
    size = max(1, estimate(case)["safety_sft"][1] // max(len(p) + len(a) for p, a in rows))
    answer_tokens = sum(len(answer) for _, answer in rows)

    def step(i: int) -> Outcome:
        total = 0.0
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            inputs = pad([p + a for p, a in part], model.tokenizer.pad_token_id, model.device).inputs
            labels = torch.full_like(inputs["input_ids"], -100)
            for k, (prompt, answer) in enumerate(part):
                labels[k, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            with model.compute():
                loss = model.network(**inputs, labels=labels, use_cache=False, num_items_in_batch=answer_tokens).loss
            loss.backward()
            total += loss.item()
        return {"loss": total}

    return with_plain_attention(model, step)


def stage1_alone(case: Card, precision: torch.dtype) -> Step:
    """The package's step of stage 1 on a model of its own, for the peak."""
    return stage1(case, build(case, precision))


def sft_alone(case: Card, precision: torch.dtype) -> Step:
    """The package's step of safety SFT on a model of its own, for the peak."""
    return sft(case, build(case, precision))


def beside_the_estimate(case: Card, part: str, peak: float) -> tuple[float, list[str]]:
    """The estimate in GB without CUDA's own memory, and a row of the table: GB allocated against it."""
    whole, tokens = estimate(case)[part]
    expected = whole - RESERVE / 1e9
    fits = "yes" if peak + RESERVE / 1e9 <= case.memory else "no"
    return expected, [part, f"{expected:.2f}", f"{peak:.2f}", f"{peak / expected - 1:+.0%}", fits, f"{tokens:,}"]


def seconds_of_both(case: Card, ours: Way, plain: Way) -> dict[str, list[float]]:
    """Seconds of every turn of both ways, on one model."""
    model = build(case, case.timed_precision)
    steps = {"ours": ours(case, model), "plain": plain(case, model)}
    return in_turns(steps, case.repetitions, case.where)


def main(case: Card) -> list[Result]:
    results: list[Result] = []
    rows = []
    parts = {
        "stage1": (stage1, plain_stage1, stage1_alone, case.prompts * case.prompt_tokens),
        "safety_sft": (sft, plain_sft, sft_alone, case.rows * case.row_tokens),
    }
    for part, (ours, plain, alone, tokens) in parts.items():
        seconds = seconds_of_both(case, ours, plain)
        gc.collect()
        torch.cuda.empty_cache()  # for the process that measures the peak
        speeds = [rates(tokens, seconds[side]) for side in ("ours", "plain")]
        results.append(Result.of(f"{part}: training", *speeds, "tokens/s", float("nan")))
        peak = peak_memory(alone, case)[0]
        expected, row = beside_the_estimate(case, part, peak)
        results.append(Result.of(f"{part}: peak memory against the estimate", [peak], [expected], "GB", float("nan")))
        rows.append(row)
    head = ["part", "estimated, GB", "allocated, GB", "off by", f"fits {case.memory:g} GB", "tokens of a pass"]
    note = "Equal work is not checked here (the words differ): see stage1.py and stage2.py."
    return finish(case, results, "ours", "plain transformers + peft", f"{markdown_table(head, rows)}\n\n{note}")


if __name__ == "__main__":
    main(tyro.cli(Card, description=__doc__))
