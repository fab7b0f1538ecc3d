"""The recipes of all families: they differ in their configuration alone, and one of each architecture and chat template
runs whole, in 4 bits, on a tiny random model, but for those of which that would show nothing more (STATES_SUFFICE)."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_runs import RECIPE, flags, recipe_module, run_here
from tiny_models import assert_far, load_reference
from transformers import AutoConfig, AutoTokenizer

from dcr_lite.measure.answers import read_answers
from dcr_lite.method import safety_sft
from dcr_lite.model.chat import FORMATS, encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.memory import fit, needs, weights
from dcr_lite.model.shapes import KNOWN
from dcr_lite.run.cards import CARDS, DESKTOP, NO_BFLOAT16
from dcr_lite.run.inputs import resolved
from dcr_lite.run.opening import open_model
from dcr_lite.settings import ChatFormat, Settings

RECIPES = {path.stem: path for path in sorted(RECIPE.parent.glob("*.py"))}
ARCHITECTURES = {
    "gemma2_2b": "gemma2",
    "gemma3_1b": "gemma3",
    "gemma3_4b": "gemma3_pictures",
    "llama3_1_8b": "llama",
    "llama3_2_3b": "llama",
    "llama3_8b": "llama",
    "mistral_7b": "mistral",
    "mistral_small_24b": "mistral",
    "olmo3_7b": "olmo3",
    "phi4_mini": "phi3",
    "qwen2_5_1_5b": "qwen2",
    "qwen2_5_7b": "qwen2",
    "qwen3_0_6b": "qwen3",
    "qwen3_1_7b": "qwen3",
    "qwen3_4b": "qwen3",
    "qwen3_8b": "qwen3",
    "smollm2_135m": "llama",
    "smollm3_3b": "smollm3",
}
FAMILIES = sorted(RECIPES.keys() - {"smollm2_135m", "phi4_mini"})  # with a base model beside the chat model


def settings_of(name: str) -> Settings:
    settings: Settings = recipe_module(RECIPES[name]).SETTINGS
    return settings


def story(path: Path) -> str:
    """A recipe's code without its docstring and its settings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    is_settings = [isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETTINGS" for node in tree.body]
    assert ast.get_docstring(tree)
    assert sum(is_settings) == 1
    return "\n".join(
        ast.dump(node) for node, left_out in zip(tree.body[1:], is_settings[1:], strict=True) if not left_out
    )


def test_the_families_are_there() -> None:
    """Every recipe is known here, so each of the claims below is made of it."""
    assert RECIPES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_differ_in_their_configuration_alone(name: str) -> None:
    """All code but docstring and SETTINGS is the same, comments included."""
    assert story(RECIPES[name]) == story(RECIPE)
    after = [path.read_text(encoding="utf-8").split("\n)\n", 1)[1] for path in (RECIPES[name], RECIPE)]
    assert after[0] == after[1]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_no_more_than_its_model(name: str) -> None:
    """The docstring holds the command, the run folder is the recipe's own, and every number is the default: what
    differs between models is found. SmolLM2 alone keeps its smaller batch."""
    settings = settings_of(name)
    text = RECIPES[name].read_text(encoding="utf-8")
    assert f"    python recipes/{name}.py" in (ast.get_docstring(ast.parse(text), clean=False) or "")
    assert settings.run == Path("runs") / name
    stated = {"base_model": settings.base_model, "base_format": settings.base_format} if name in FAMILIES else {}
    of_smollm2 = {"contrastive_batch": 32, "contrastive_steps": 160} if name == "smollm2_135m" else {}
    assert settings == Settings(
        model=settings.model, run=settings.run, compare_with=settings.compare_with, **stated, **of_smollm2
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_begins_with_its_chat_model(name: str) -> None:
    """By default the chat model in its own format, on the shipped rows; with --from-base-model the base model in its
    family's, on the full ones."""
    settings = settings_of(name)
    chat = resolved(settings)
    assert (chat.model, chat.chat_format, chat.data) == (settings.model, "own", "shipped")
    base = resolved(replace(settings, from_base_model=True, data="shipped"))
    assert (base.model, base.chat_format) == (settings.base_model, settings.base_format)
    assert base.chat_format in FORMATS
    assert resolved(base) == base
    says = {model: re.findall("instruct|-it$|base|-pt$", model.lower()) for model in (base.model, chat.model)}
    assert says[base.model] in ([], ["base"], ["-pt"])
    assert says[chat.model] in (["instruct"], ["-it"]) or (says[chat.model] == [] and says[base.model])


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - set(FAMILIES)))
def test_a_recipe_without_a_base_model_says_so(name: str) -> None:
    """Of SmolLM2 it has none, and of Phi-4-mini there is none: the flag is an error that names the cure."""
    done = run_here(["--from-base-model"], RECIPES[name])
    assert done.code == 1
    assert "this recipe names no base model; give one with --base-model" in done.err


@pytest.mark.parametrize("name", RECIPES)
def test_the_document_of_the_families_is_true(name: str) -> None:
    """The tables of docs/families.md have of each recipe its models, format, depth and width, and the memory and tokens
    that are estimated for it on three cards, a dash where it does not fit."""
    settings = settings_of(name)
    shape = KNOWN[settings.model]
    true = {settings.model, str(shape.layers), str(shape.width)}
    true |= {f"{weights(shape, True, 2) / 1e9:.1f}"}
    if name in FAMILIES:
        true |= {settings.base_model, settings.base_format}
    for card in ("T4", "RTX 3060", "RTX 3090"):
        free = next(size for title, size in CARDS.items() if title.startswith(card)) - DESKTOP
        parts = needs(shape, settings, True, 4 if card == NO_BFLOAT16 and shape.exceeds_float16 else 2)
        if any(need.units(free) is None for need in parts):
            true |= {"-"}
            continue
        found = fit(parts, free, settings.model)
        peak = max(need.total(found.units[part]) for part, need in found.needs.items())
        true |= {f"{peak / 1e9:.1f}", f"{found.units['stage2']:,}"}
    lines = (RECIPE.parent.parent / "docs" / "families.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and name in line.split("|")[1]]
    said = {word.strip(",;()[]`") for row in rows for word in row.split()}
    assert true <= said, true - said


# --- whole runs -------------------------------------------------------------------------------------------------------


def format_of(name: str) -> ChatFormat:
    """That of the recipe's base model, which brings none; its own where there is no base model."""
    return settings_of(name).base_format if name in FAMILIES else "own"


# Of these a whole run does nothing that one of Llama's or Gemma 2's does not: what differs is tested on states,
# gradients, answers and exports (test_packing, test_hidden_states, test_generation, test_multimodal, test_gguf). Whole
# runs without 4 bits are in test_found_settings.
STATES_SUFFICE = ("gemma3", "olmo3", "phi3", "qwen2", "smollm3")
# One recipe for each other architecture and chat format: the flags of the tests set all else.
KINDS = {(ARCHITECTURES[name], format_of(name)): name for name in RECIPES if ARCHITECTURES[name] not in STATES_SUFFICE}


@pytest.mark.parametrize("name", sorted(KINDS.values()))
def test_a_recipe_runs_whole_in_four_bits(
    name: str, rows: Path, tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stages, the baseline, the evaluation and the report, in NF4: stage 1 separates unseen pairs better than the
    stock model, stage 2 lowers its loss, and the adapter can be loaded again."""
    monkeypatch.setattr(safety_sft, "OBSERVATIONS", 1)  # of the answers, which take longer than the steps
    # Through a window of eight letters the last token sees the template alone.
    wide = {"sliding_window": 64} if ARCHITECTURES[name] == "gemma3_pictures" else {}
    folder, run = tiny_folder(ARCHITECTURES[name], format_of(name), **wide), tmp_path / "run"
    changes = {"chat_format": format_of(name), "quantization": "nf4", "evaluation": rows / "held_out.jsonl"}
    changes |= {"contrastive_steps": 16, "sft_batch": 2, "sft_epochs": 2, "sft_learning_rate": 1e-2}
    given = flags(folder, rows, run, compare_with="safety_sft", **changes)
    done = run_here(given, RECIPES[name])
    assert (done.code, done.err) == (0, "")
    assert "4-bit NF4 on cpu" in done.out
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert list(report["methods"]) == ["base", "safety_sft", "dcr"]
    assert (report["settings"]["chat_format"], report["settings"]["quantization"]) == (format_of(name), "nf4")

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    unseen = [row["development_auroc"] for row in metrics if "development_auroc" in row]
    assert max(unseen[1:]) > unseen[0]
    for stage in ("stage2", "safety_sft"):
        losses = [row["loss"] for row in metrics if row["stage"] == stage and "loss" in row]
        assert sum(losses[-6:]) < 0.9 * sum(losses[:6])

    assert_opened_run_answers_as_measured(run)
    assert_peft_loads_what_was_learnt(run, folder)


def assert_opened_run_answers_as_measured(run: Path) -> None:
    """Opened again, in 4 bits and with its chat template, the run gives the scores and answers that were measured."""
    measured = read_answers(run / "answers" / "dcr.jsonl")
    opened = open_model(str(run))
    prompts = encode_prompts(opened.model.tokenizer, [row["prompt"] for row in measured], opened.model.window)
    for row, said in zip(measured, answer(opened.model, prompts, max_new_tokens=6), strict=True):
        assert said.text.startswith(row["response"])
        assert said.refusal_log_odds == pytest.approx(row["refusal_log_odds"], abs=1e-4)


def assert_peft_loads_what_was_learnt(run: Path, folder: Path) -> None:
    """The tokenizer beside the adapter has its chat template; the adapter, as peft loads it, changes the logits and
    holds weights for every layer, all of them finite and none of them left at zero."""
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    ids: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Can I cut a cake?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )["input_ids"]  # fmt: skip
    stock = load_reference(folder)
    with torch.no_grad():
        before = stock(ids).logits
        after = PeftModel.from_pretrained(stock, run / "adapter").eval()(ids).logits
    assert_far(after, before)
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    layers = AutoConfig.from_pretrained(folder).get_text_config().num_hidden_layers
    assert {int(key.split(".layers.")[1].split(".")[0]) for key in weights} == set(range(layers))
    assert [key for key, value in weights.items() if not value.isfinite().all() or not value.any()] == []
