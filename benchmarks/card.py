"""A recipe's geometry on a card: peak memory against the estimate, tokens a second against plain transformers + peft.

    python benchmarks/card.py                                   # Llama 3 8B's shape, random weights in 4-bit NF4
    python benchmarks/card.py --model Qwen/Qwen2.5-1.5B --json card.json

Weights and words are random, since neither changes time or memory. Stage 1 takes the kit's own step on 64 prompts of
about 64 tokens, safety SFT the kit's own step on 8 rows of about 512. The plain way does the same work with the whole
model on padded rows: all hidden states for stage 1, the mean loss over answer tokens for safety SFT. Both go through in
passes of as many tokens as the estimate says fit into --memory GB, however large the card is. The clock needs both
models on the card at once, so for 8 billion weights take one of 24 GB; the peak is measured with one of them alone. It
is what torch has allocated, and the estimate stands beside it without the GB that CUDA itself takes.

Not run on a card yet.
"""

import gc
import random
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from _measure import ADAPTER, RANK, Case, Outcome, Result, Step, finish, in_turns, loop_of, peak_memory

from dcr_lite.data.sources import SMOLLM2, locate
from dcr_lite.model.memory import RESERVE

WORDS = ("time", "way", "year", "work", "day", "part", "place", "case", "point", "hand", "week", "group")


@dataclass
class Card(Case):
    """What to measure."""

    model: str = "unsloth/llama-3-8b"
    """One of the recipes' models, or a folder, for its shape."""
    tokenizer: str = SMOLLM2
    """Whose tokens and chat template: a folder, or SmolLM2."""
    layers: int | None = None
    """Decoder layers, to try the script on less; the model's own by default."""
    prompts: int = 64
    """Prompts in a step of stage 1."""
    prompt_tokens: int = 64
    """Tokens of a prompt, about."""
    rows: int = 8
    """Rows in a step of safety SFT."""
    row_tokens: int = 512
    """Tokens of a row, about, half of them the answer's."""
    memory: float = 12.0
    """GB free on the card that the passes are planned for."""
    weights: Path | None = None
    """A folder to keep the random weights in, and to take them from another time; 16 GB for 8 billion. By default they
    go when the script ends."""


def shape_of(case: Card) -> Any:
    from dcr_lite.model.fit import shape_of as read

    shape = read(case.model)
    return replace(shape, layers=case.layers or shape.layers)


def write_weights(case: Card, folder: Path) -> None:
    """Random weights of the shape, and the tokenizer, where they are not there yet."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    if (folder / "tokenizer_config.json").exists():
        return
    shape = shape_of(case)
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate(case.tokenizer)[0]).save_pretrained(folder)


def build(case: Card, precision: torch.dtype) -> Any:
    """The model in NF4 with an adapter, as a run loads it."""
    from dcr_lite.model import adapters, loading

    model = loading.load(str(case.weights), case.where, precision, four_bit=True)
    adapters.add_adapter(model, ADAPTER, RANK, case.seed)
    return model


def words(n: int, seed: int) -> str:
    """``n`` words, each one token of the tokenizer, near enough."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def half(case: Card) -> int:
    return shape_of(case).layers // 2


def units(case: Card, part: str) -> int:
    """Tokens of a pass that the estimate allows for a part of the run."""
    return estimate(case)[part][1]


def estimate(case: Card) -> dict[str, tuple[float, int]]:
    """(estimated peak in GB, CUDA's own in it; tokens of a pass) of each part."""
    from dcr_lite.model.fit import fit, needs
    from dcr_lite.settings import Settings

    settings = Settings(case.model, Path("runs"), half(case), contrastive_batch=case.prompts, sft_batch=case.rows)
    parts = needs(shape_of(case), settings, True, case.timed_precision.itemsize)
    found = fit(parts, case.memory * 1e9, case.model, insist=False)
    return {name: (need.total(found.units[name]) / 1e9, found.units[name]) for name, need in found.needs.items()}


def stage1(case: Card, precision: torch.dtype) -> Step:
    """The kit's step of stage 1."""
    from dcr_lite.data.rows import Pair
    from dcr_lite.method.contrastive import Contrastive, contrastive_refinement
    from dcr_lite.method.losses import supervised_contrastive

    model = build(case, precision)
    model.tokens_per_pass = units(case, "stage1")
    n = case.prompts // 2
    pairs = [Pair(words(case.prompt_tokens - 38, i), words(case.prompt_tokens - 38, -i - 1)) for i in range(n)]
    how = Contrastive(half(case), supervised_contrastive(0.5), "batch", False, case.repetitions + 2, case.prompts, 1e-4)
    loop = loop_of(lambda: contrastive_refinement(model, ADAPTER, pairs, pairs[:2], how, case.seed))
    model.network.train()
    return lambda i: {"loss": loop.backward(i)}


def sft(case: Card, precision: torch.dtype) -> Step:
    """The kit's step of safety SFT on all layers."""
    from dcr_lite.method.safety_sft import SafetySFT, safety_sft

    model = build(case, precision)
    model.tokens_per_pass = units(case, "safety_sft")
    how = SafetySFT(-1, case.repetitions + 2, case.rows, 1e-4)
    loop = loop_of(lambda: safety_sft(model, ADAPTER, conversations(case), how, case.seed))
    model.network.train()
    return lambda i: {"loss": loop.backward(i)}


def conversations(case: Card) -> list[Any]:
    from dcr_lite.data.rows import Conversation

    n = (case.row_tokens - 40) // 2
    return [Conversation(words(n, i), words(n, -i - 1)) for i in range(case.rows)]


def _plain(case: Card, precision: torch.dtype, layers: int) -> Any:
    from dcr_lite.model import adapters

    model = build(case, precision)
    model.network.set_attn_implementation("sdpa")
    adapters.train_only(model, ADAPTER, range(layers))
    model.network.train()
    return model


def plain_stage1(case: Card, precision: torch.dtype) -> Step:
    """Stage 1 from the whole model: hidden states of every layer, padded rows, parts through GradCache."""
    from dcr_lite.method import gradcache
    from dcr_lite.method.geometry import kinds_of_pairs
    from dcr_lite.method.losses import cosine_similarity, supervised_contrastive
    from dcr_lite.model.chat import encode_prompts
    from dcr_lite.model.packing import pad

    model = _plain(case, precision, half(case) + 1)
    rows = encode_prompts(model.tokenizer, [words(case.prompt_tokens - 38, i) for i in range(case.prompts)], 4096)
    size = max(1, units(case, "stage1") // max(map(len, rows)))

    def encode(part: list[list[int]]) -> Tensor:
        batch = pad(part, model.tokenizer.pad_token_id, model.device)
        with model.compute():
            out = model.network(**batch.inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        return out.hidden_states[half(case) + 1].flatten(0, 1)[batch.last].float()

    def loss_of(states: Tensor) -> Tensor:
        kinds = kinds_of_pairs(len(states) // 2, states.device)
        return supervised_contrastive(0.5)(cosine_similarity(states - states.mean(0)), kinds)

    def step(i: int) -> Outcome:
        loss, _ = gradcache.backward(encode, [rows[k : k + size] for k in range(0, len(rows), size)], loss_of)
        return {"loss": loss}

    return step


def plain_sft(case: Card, precision: torch.dtype) -> Step:
    """Safety SFT from the whole model: padded rows and the library's own loss."""
    from dcr_lite.model.chat import encode_conversations
    from dcr_lite.model.packing import pad

    model = _plain(case, precision, shape_of(case).layers)
    chosen = conversations(case)
    rows = encode_conversations(model.tokenizer, [r.prompt for r in chosen], [r.response for r in chosen], 4096)
    size = max(1, units(case, "safety_sft") // max(len(p) + len(a) for p, a in rows))

    def step(i: int) -> Outcome:
        total, answers = 0.0, sum(len(answer) for _, answer in rows)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batch = pad([p + a for p, a in part], model.tokenizer.pad_token_id, model.device)
            labels = torch.full_like(batch.inputs["input_ids"], -100)
            for k, (prompt, answer) in enumerate(part):
                labels[k, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            with model.compute():
                loss = model.network(**batch.inputs, labels=labels, use_cache=False, num_items_in_batch=answers).loss
            loss.backward()
            total += loss.item()
        return {"loss": total}

    return step


def beside_the_estimate(case: Card, part: str, peak: float) -> tuple[float, str]:
    """The estimate in GB without CUDA's own, and a row of the table: GB allocated against it."""
    whole, tokens = estimate(case)[part]
    expected = whole - RESERVE / 1e9
    fits = "yes" if peak + RESERVE / 1e9 <= case.memory else "no"
    return expected, f"| {part} | {expected:.2f} | {peak:.2f} | {peak / expected - 1:+.0%} | {fits} | {tokens:,} |"


def main(case: Card) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="card_") as scratch:
        case = replace(case, weights=case.weights or Path(scratch))
        assert case.weights is not None
        write_weights(case, case.weights)
        return measure(case)


def measure(case: Card) -> list[Result]:
    """Both parts, with the weights in their folder."""
    results: list[Result] = []
    head = ["part", "estimated, GB", "allocated, GB", "off by", f"fits {case.memory:g} GB", "tokens of a pass"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    sides = {"stage1": (stage1, plain_stage1), "safety_sft": (sft, plain_sft)}
    tokens = {"stage1": case.prompts * case.prompt_tokens, "safety_sft": case.rows * case.row_tokens}
    for part, (ours, plain) in sides.items():
        steps = {"ours": ours(case, case.timed_precision), "plain": plain(case, case.timed_precision)}
        seconds = in_turns(steps, case.repetitions, case.where)
        steps.clear()
        gc.collect()
        torch.cuda.empty_cache()  # for the process that measures the peak
        speeds = [[tokens[part] / s for s in seconds[side]] for side in ("ours", "plain")]
        results.append(Result.of(f"{part}: training", *speeds, "tokens/s", float("nan")))
        peak = peak_memory(ours, case)[0]
        expected, line = beside_the_estimate(case, part, peak)
        results.append(Result.of(f"{part}: peak memory against the estimate", [peak], [expected], "GB", float("nan")))
        lines.append(line)
    more = "\n".join(lines) + "\n\nEqual work is not checked here (the words differ): see stage1.py and stage2.py."
    return finish(case, results, "ours", "plain transformers + peft", more)


if __name__ == "__main__":
    main(tyro.cli(Card, description=__doc__))
