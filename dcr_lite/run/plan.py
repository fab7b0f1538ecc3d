"""The plan of a run and its estimated time, from the operations it needs and the speed of this machine."""

import time

import torch

from dcr_lite.data.rows import prompts_of
from dcr_lite.method.dial_fitting import PAIRS as DIAL_PAIRS
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.hidden_states import decoder_of, depth, width_of
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE, MODEL_TITLES, models_of
from dcr_lite.run.inputs import Data
from dcr_lite.run.own_voice import OWN_TOKENS
from dcr_lite.run.terminal import ESTIMATE
from dcr_lite.settings import Settings

ACHIEVED = 0.5  # of the matrix-product rate that whole runs reach on a CPU by the count below: a rough guide
DIAL_READINGS, DIAL_ANSWERS = 8, 6  # strengths at which the dial is read, and at which answers are judged, about
ANSWER_WORDS = 1.4  # tokens per word of English, near enough for an estimate


def matrix_rate(device: str, precision: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product, measured now (about a tenth of a second)."""
    a = torch.randn(1024, 1024, device=device, dtype=precision)
    rates = []
    for _ in range(24):  # the best of many: a neighbour's moment of work must not triple the estimate
        started = time.perf_counter()
        float((a @ a)[0, 0])  # reading a number waits for the device
        rates.append(2 * 1024**3 / (time.perf_counter() - started))
    return max(rates)


def weights_per_layer(model: Model) -> int:
    """Weights of one decoder layer's matrices, 4-bit ones counted as the weights they stand for."""
    config = decoder_of(model.network).config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    return int(config.hidden_size * (attention * head + 3 * config.intermediate_size))


def _batch(data: Data, settings: Settings) -> int:
    """The prompts of a step of stage 1: no more than there are in pairs."""
    return 2 * min(settings.contrastive_batch // 2, len(data.training))


def operations(model: Model, data: Data, settings: Settings) -> dict[str, float]:
    """Of stage 1, of stage 2, the baseline, own answers and the dial where there are such, and of the answers that are
    measured: 2 per weight and token forward, as many again backward."""
    sample = prompts_of(data.training[:64])[: len(data.training[:64])]  # toxic sides
    prompt = sum(map(len, encode_asked(model.tokenizer, sample, model.window))) / len(sample)
    layers, layer = depth(model.network), weights_per_layer(model)
    head = decoder_of(model.network).config.vocab_size * width_of(model.network)

    def sft(rows: int, words: float, trained: int) -> float:
        per_row = (prompt + words * ANSWER_WORDS) * trained * layer + words * ANSWER_WORDS * head
        return settings.sft_epochs * rows * per_row * 4

    words = sum(len(r.response.split()) for r in data.baseline_mixture) / len(data.baseline_mixture)
    above = layers - settings.layer - 1 if settings.sft_layers == "above" else layers

    def answers(prompts: int, tokens: int) -> float:
        return prompts * (prompt + tokens) * 2 * (layers * layer + head)

    sizes, models = settings.sizes, models_of(settings.compare_with)
    in_steps, first = settings.refining_steps * _batch(data, settings), settings.first_refined
    for_dial = 2 * min(DIAL_PAIRS, len(data.training)) if settings.dial != "none" else 0
    below = min(max(in_steps, for_dial), 2 * len(data.training))  # go through the layers below the trained ones, once
    refined = in_steps * (settings.layer + 1 - first) * 4 + below * first * 2
    parts = {
        "stage1": prompt * refined * layer,
        "answers": answers(len(models) * len(data.held_out), settings.answer_tokens),
    }
    if settings.stage2 == "yes":
        parts["stage2"] = sft(sizes["instructions"] + sizes["refusals"], words, above)
    if BASELINE in settings.compare_with:
        parts[BASELINE] = sft(len(data.baseline_mixture), words, layers)
    if settings.answers == "own" and parts.keys() & {"stage2", BASELINE}:
        parts["own answers"] = answers(sizes["instructions"], OWN_TOKENS)
    if settings.dial != "none":
        read = for_dial * prompt * (settings.layer + 1 - first) * 2 * layer
        asked = 2 * len(data.development)
        kept = (DIAL_READINGS - 1) * settings.layer if model.packs else 0  # layers that see the same at each strength
        readings = answers(asked * DIAL_READINGS, 0) - asked * prompt * kept * 2 * layer
        parts["dial"] = read + answers(asked * DIAL_ANSWERS, settings.answer_tokens) + readings
    return parts


def estimated_seconds(model: Model, data: Data, settings: Settings) -> float:
    """Rough seconds of a whole run on this machine, whatever of it is done already."""
    parts = operations(model, data, settings)
    return sum(parts.values()) / (matrix_rate(model.device, model.precision) * ACHIEVED)


def _longest_rows(data: Data) -> str:
    """The longest rows in tokens, and how many public ones were left out as longer."""
    names = {"pairs": "pairs", "instruction_rows": "instructions", "refusal_rows": "refusals", "evaluation": "held out"}
    told = ", ".join(f"{name} {data.longest[setting]:,}" for setting, name in names.items() if setting in data.longest)
    left_out = ", ".join(f"{n:,} {names[setting]}" for setting, n in data.left_out.items())
    return f"{told} tokens" + (f"; left out as too long: {left_out}" if left_out else "")


def _safety_sft(settings: Settings) -> dict[str, str]:
    """The plan of stage 2 and of the baseline, where there are such."""
    sizes, epochs = settings.sizes, "epoch" if settings.sft_epochs == 1 else "epochs"
    above = "layers above L" if settings.sft_layers == "above" else "all layers"
    voice = "its own answers" if settings.answers == "own" else "the answers given"
    rows = (
        f"{sizes['instructions']} instructions with {voice} and {{}} refusals{{}}, {settings.sft_epochs} {epochs} of "
    )
    rows += f"{settings.sft_batch}, {{}}"
    again = f" ({settings.begun_refusals} again behind begun answers)" if settings.begun_refusals else ""
    later = f", {settings.second_turns:.0%} of all as second turns" if settings.second_turns else ""
    lines = {"stage 2": rows.format(sizes["refusals"], again, above) + later if settings.stage2 == "yes" else "none"}
    if BASELINE in settings.compare_with:
        lines[MODEL_TITLES[BASELINE]] = rows.format(sizes["baseline_refusals"], "", "all layers")
    return lines


def plan(model: Model, source: str, data: Data, settings: Settings) -> dict[str, str]:
    """The plan by part, in words."""
    precision = "4-bit NF4" if model.four_bit else str(model.precision).removeprefix("torch.")
    minutes = estimated_seconds(model, data, settings) / 60
    loss = "circle on raw states (the paper's)" if settings.paper else settings.contrastive_loss.replace("_", " ")
    share = settings.contrastive_share or 1.0
    of_it = f"; {share:g} of what that changes stays" if share < 1 else ""
    models, batch = len(models_of(settings.compare_with)), _batch(data, settings)
    return {
        "model": f"{settings.model} ({source}), {depth(model.network)} layers, {precision} on {model.device}",
        "backend": f"{model.backend.name} ({model.backend.why})",
        "stage 1": f"at most {settings.refining_steps} steps of {batch} prompts from {len(data.training)} pairs, "
        f"{len(data.development)} held back, {loss}, layers {settings.first_refined}-{settings.layer} (L){of_it}"
        if settings.refining_steps
        else f"none (L = {settings.layer})",
        **_safety_sft(settings),
        "dial": settings.dial.replace("_", " "),
        "longest rows": _longest_rows(data),
        "evaluation": f"{len(data.held_out)} held-out prompts, {models} models, {settings.answer_tokens} tokens each",
        ESTIMATE: f"about {max(1, round(minutes))} min",
        "run folder": str(settings.run),
    }
