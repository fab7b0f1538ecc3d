"""Memory that a run needs, estimated from the shape of the model alone, and what fits into the memory that is free.

The estimate is a sum, in bytes, of what is there at once: weights, adapters with Adam's moments, what the backward pass
of one layer keeps of every token, the logits of a few answer tokens, and the keys and values of prompts being answered.
The activations are tested against what autograd keeps of the library's own layers; the whole has not been compared with
a card yet. On a CPU, where some layers are fused, less is kept.

A batch that does not fit goes through in several passes with the same gradients (see gradcache).
"""

import math
from dataclasses import dataclass

from dcr_lite.errors import UserError
from dcr_lite.model.shapes import Shape
from dcr_lite.names import BASELINE
from dcr_lite.settings import FOUND, Settings, layers_between

NF4_BYTES = 0.516  # of a weight in 4 bits: its half byte, and the doubly quantised scale of each block of 64
ADAM_BYTES = 4 + 4 + 4 + 4  # of a trained weight in float32: gradient, two moments, and the step's temporary copy
# CUDA's own context, the library handles, and what the allocator cannot use of its blocks.
RESERVE = 1_000_000_000

MOST_TOKENS = 4096  # of one pass: more use neither two cores nor one card any better
LEAST_TOKENS = 128  # about one row; a longer row goes through alone
MOST_PROMPTS = 128  # answered together
PROMPT_TOKENS, ROW_TOKENS = 64, 512  # of a prompt in the chat template, and of a long training row: for the estimate
ROW_STEP = 16  # tokens
LOGITS_PER_PASS = 128  # answer tokens whose logits exist at once: 25 MB in float32 for a vocabulary of 49,152

# What stage 1 reads and the dial is fitted to (method/dial_fitting.py), in this computer's memory on any device.
READ_ROWS, OWN_TOKENS = 8_000, 32  # both sides of 4,000 pairs, and tokens of one behind what all of them share
# Two of each row and, for each of them, about one of the shared ones, which are read in every pass; and of answers.
FITTED_TOKENS = 3 * READ_ROWS + 3072

STATES = 12_000  # rows whose states at layer L are stored, about: toxic prompts that stage 2 may draw, and pairs
SMALL_FILES = 250_000_000  # four tokenizers of up to 35 MB, answers, pictures, and a margin


# --- the estimate -----------------------------------------------------------------------------------------------------


def weights(shape: Shape, four_bit: bool, value_bytes: int) -> float:
    """The base model: linear maps in NF4 or not, embeddings and an output matrix of their own never quantised."""
    linear = shape.layers * sum(i * o for i, o in shape.maps)
    return linear * (NF4_BYTES if four_bit else value_bytes) + (shape.parameters - linear) * value_bytes


def adapters(shape: Shape, rank: int, count: int, trained_layers: int, value_bytes: int) -> float:
    """``count`` LoRA adapters in float32 on all linear maps; one is in use, cast to the activations' type, and trains
    in ``trained_layers`` layers."""
    a_layer = sum(rank * (i + o) for i, o in shape.maps)
    return a_layer * ((4 * count + value_bytes) * shape.layers + ADAM_BYTES * trained_layers)


def activations(shape: Shape, rank: int, value_bytes: int, row_tokens: int) -> float:
    """What one layer keeps of one token for the backward pass, adapters on and nothing recomputed.

    Each RMSNorm keeps its input in float32; the adapter the input of each map, once, and what lies between its two
    matrices; attention its queries, its keys and values once per query head, and its output; the MLP its inner
    products. ``row_tokens``: tokens in a row, which scores that are kept grow with.
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    norms = 4 * shape.norms * shape.width
    if shape.head_norms:
        norms += 4 * (queries + keys)
    inputs = 2 * shape.width + queries + shape.mlp_width + len(shape.maps) * rank
    attention, inner = 4 * queries, 3 * shape.mlp_width
    scores = shape.heads * row_tokens * 8 if shape.scores else 0  # capped, and as weights in float32 and cast
    return norms + value_bytes * (inputs + attention + inner) + scores


def logits(shape: Shape, tokens: int, value_bytes: int) -> float:
    """Logits of ``tokens`` answer tokens: as computed, in float32, their gradient and its copy."""
    return tokens * shape.vocabulary * (2 * value_bytes + 3 * 4)


def largest_map(shape: Shape, four_bit: bool, value_bytes: int) -> float:
    """A quantised map is written out whole for its product: the largest one, forward and backward."""
    return max(i * o for i, o in shape.maps) * value_bytes if four_bit else 0.0


def cache(shape: Shape, value_bytes: int) -> float:
    """Keys and values of one token in all layers, and the copy of them that grows beside while a token is added."""
    return 2 * 2 * shape.layers * shape.kv_heads * shape.head_width * value_bytes


def stored_states(shape: Shape, value_bytes: int) -> float:
    """What enters the first layer that stage 1 trains, of all that it reads: computed once and kept, for the dial's fit
    as well."""
    return READ_ROWS * OWN_TOKENS * shape.width * value_bytes


def ridge(shape: Shape, tokens: int) -> float:
    """Fitting the dial's key and reader: the inputs of a layer's last map at so many tokens in float32; and beside them
    first a second copy, while those of all rows are joined, then their products in double precision."""
    inputs, side = 4 * tokens * shape.mlp_width, min(tokens, shape.mlp_width)
    return inputs + max(inputs, 8 * side**2)


# --- what fits --------------------------------------------------------------------------------------------------------

TITLES = {
    "stage1": "stage 1", "stage2": "stage 2", "safety_sft": "safety SFT alone", "dial": "fitting the dial",
    "evaluation": "evaluation",
}  # fmt: skip


@dataclass(frozen=True)
class Need:
    """The memory of one part of a run: ``fixed`` bytes, and ``each`` for every unit (a token of a training pass, a
    prompt being answered), of which there are between ``least`` and ``most`` at once. tokens: in a unit."""

    name: str
    fixed: float
    each: float
    most: int
    least: int
    tokens: int = 1

    def units(self, free: float) -> int | None:
        """How many units fit into ``free`` bytes, a power of two times ``least``; None where not even the least."""
        fitting = (free - self.fixed) / self.each
        if fitting < self.least:
            return None
        return min(self.most, self.least * 2 ** int(math.log2(fitting / self.least)))

    def longest_row(self, free: float) -> int:
        """Tokens of the longest row that goes through ``free`` bytes alone, a multiple of ROW_STEP. A tenth is left
        over: a run that goes on later, with a little less free, has to have room for the same rows."""
        return int(0.9 * (free - self.fixed) / self.each * self.tokens) // ROW_STEP * ROW_STEP

    def total(self, units: int) -> float:
        """Bytes with so many units at once."""
        return self.fixed + self.each * units


def needs(shape: Shape, settings: Settings, four_bit: bool, value_bytes: int, on_cpu: bool = False) -> list[Need]:
    """What the parts of a run need, in their order: stage1, stage2 unless it is left out, safety_sft where it is asked
    for, dial unless there is none, evaluation. Where L is still to be found, each stage is planned for the L at which
    it needs most. on_cpu: what is kept in this computer's memory on any device counts, and the dial's fit, which is
    done there; of a card it takes nothing."""
    base = weights(shape, four_bit, value_bytes) + RESERVE + largest_map(shape, four_bit, value_bytes)
    answers = logits(shape, LOGITS_PER_PASS, value_bytes)

    def training(name: str, trained: int, batch: int, row_tokens: int, extra: float) -> Need:
        fixed = base + extra + adapters(shape, settings.rank, 1 + len(settings.compare_with), trained, value_bytes)
        # One layer more than keeps its activations: the gradients that are being computed in it. A layer L that the
        # model lacks is refused later.
        each = (max(0, trained) + 1) * activations(shape, settings.rank, value_bytes, row_tokens)
        return Need(name, fixed, each, min(MOST_TOKENS, max(batch * row_tokens, LEAST_TOKENS)), LEAST_TOKENS)

    between = layers_between(shape.layers) if settings.layer == FOUND else [settings.layer]
    above = shape.layers - between[0] - 1 if settings.sft_layers == "above" else shape.layers
    up_to = between[-1] + 1
    refined = up_to if settings.paper else min(up_to, settings.contrastive_layers or up_to)
    stored = stored_states(shape, value_bytes) if on_cpu and refined < up_to else 0.0
    parts = []
    if settings.stage1 != "no":
        parts.append(training("stage1", refined, settings.contrastive_batch, PROMPT_TOKENS, stored))
    if settings.stage2 != "no":
        parts.append(training("stage2", above, settings.sft_batch, ROW_TOKENS, answers))
    if BASELINE in settings.compare_with:
        parts.append(training(BASELINE, shape.layers, settings.sft_batch, ROW_TOKENS, answers))
    if on_cpu and settings.dial != "none":
        count = 1 + len(settings.compare_with)
        fixed = base + stored + adapters(shape, settings.rank, count, 0, value_bytes)
        parts.append(Need("dial", fixed, ridge(shape, FITTED_TOKENS) / FITTED_TOKENS, FITTED_TOKENS, FITTED_TOKENS))
    return [*parts, evaluation_need(shape, four_bit, value_bytes, settings.rank, settings.answer_tokens)]


def evaluation_need(shape: Shape, four_bit: bool, value_bytes: int, rank: int = 16, answer_tokens: int = 40) -> Need:
    """What answering prompts needs, with two adapters on the model."""
    base = weights(shape, four_bit, value_bytes) + RESERVE + largest_map(shape, four_bit, value_bytes)
    prompt = cache(shape, value_bytes) * (PROMPT_TOKENS + answer_tokens) + logits(shape, 1, value_bytes)
    fixed, tokens = base + adapters(shape, rank, 2, 0, value_bytes), PROMPT_TOKENS + answer_tokens
    return Need("evaluation", fixed, prompt, MOST_PROMPTS, 1, tokens)


def disk_need(shape: Shape, rank: int) -> float:
    """What a run writes: four adapters (after stage 1, after stage 2, safety SFT alone, and the one to keep), and two
    checkpoints, of which one is being written: weights, the best weights so far and Adam's two moments; states of
    layer L and tokenizers beside them."""
    adapter = 4 * shape.layers * sum(rank * (i + o) for i, o in shape.maps)
    return (4 + 2 * 4) * adapter + STATES * 4 * shape.width + SMALL_FILES


@dataclass(frozen=True)
class Fit:
    """What fits; empty where the model's need is unknown.

    units: for each part the tokens of a pass, or the prompts answered together. needs: by the same names.
    longest: for each part the tokens of the longest row; empty where memory is not insisted on. free: bytes that were
    free.
    """

    units: dict[str, int]
    longest: dict[str, int]
    needs: dict[str, Need]
    free: float

    def lines(self) -> dict[str, str]:
        """The estimate as lines to show, by their titles."""
        free = f"{self.free / 1e9:.1f} GB free"
        if not self.needs:
            return {"memory": f"{free}; the need of this model cannot be estimated from its config.json"}
        lines = {"memory": f"{free}; estimated need, and what goes through the model at once:"}
        for name, need in self.needs.items():
            n, what = self.units[name], "prompts" if name == "evaluation" else "tokens"
            lowered = f", lowered from {need.most:,} to fit" if n < need.most else ""
            with_them = "" if name == "dial" else f" with {n:,} {what}{lowered}"
            lines[f"  {TITLES[name]}"] = f"{need.total(n) / 1e9:.1f} GB{with_them}"
        return lines


def fit(parts: list[Need], free: float, model: str, insist: bool = True) -> Fit:
    """What fits into ``free`` bytes. Raises UserError naming a part that does not fit even with the least at once;
    without ``insist`` it takes the least (a computer can swap, a card cannot)."""
    units = {}
    longest = {need.name: need.longest_row(free) for need in parts} if insist else {}
    for need in parts:
        n = need.units(free)
        if n is None and insist:
            raise UserError(
                f"{model} needs at least {need.total(need.least) / 1e9:.1f} GB for {TITLES[need.name]} and "
                f"{free / 1e9:.1f} GB are free. Close other programs that use it, lower --rank, load it with "
                "--quantization nf4, or take the recipe of a smaller model; --plan shows what fits which card."
            )
        units[need.name] = n or need.least
    return Fit(units, longest, {need.name: need for need in parts}, free)
