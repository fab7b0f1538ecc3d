"""report.json, report.md and the model card: what a run found, for machines, for people and for the Hub."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from dcr_lite.data.paper_data import HubSet, sources
from dcr_lite.files import SHIPPED
from dcr_lite.names import LABELS, METHODS
from dcr_lite.settings import TRAINING_FILES


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _cell(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "-"
    low, high = rate["ci95"]
    return f"{rate['refusal_rate']:.2f} ({low:.2f}-{high:.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def results_table(report: dict[str, Any]) -> str:
    """The three models as a Markdown table: refusal rates with 95 % Wilson intervals, J and AUROC."""
    lines = ["| | toxic ↑ | seemingly toxic ↓ | plain ↓ | J ↑ | AUROC ↑ |", "|---|---|---|---|---|---|"]
    for method, result in report["methods"].items():
        rates = [_cell(result["overall"].get(label)) for label in LABELS]
        numbers = [_number(result["discernment"][k]) for k in ("j", "auroc")]
        lines.append("| " + " | ".join([METHODS[method], *rates, *numbers]) + " |")
    return "\n".join(lines)


def sets_table(report: dict[str, Any]) -> str:
    """Every set by itself as a Markdown table: refusal rates of the models with 95 % Wilson intervals."""
    methods = list(report["methods"])
    lines = ["| set | label | n | " + " | ".join(METHODS[m] for m in methods) + " |", "|---" * (3 + len(methods)) + "|"]
    for i, row in enumerate(report["methods"][methods[0]]["sets"]):
        cells = [_cell(report["methods"][m]["sets"][i]) for m in methods]
        lines.append(f"| {row['name']} | {row['label'].replace('_', ' ')} | {row['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_report(report: dict[str, Any], command: str, path: Path) -> None:
    """report.md: the result, the pictures, what was done."""
    seconds, settings = report["seconds"], report["settings"]
    done = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    path.write_text(
        f"""# {report["recipe"]}

`{command}` on {report["model"]} ({report["source"]}), seed {report["seed"]}.

Refusal rates with 95 % Wilson intervals. J is the refusal rate on toxic prompts minus that on seemingly toxic ones;
AUROC says how well the log-odds of opening with a refusal tell the two apart (0.5 is chance). They are measured on
prompts that nothing was trained on or chosen by.

{results_table(report)}

![Refusal rates](refusal_rates.png)

Each set by itself:

{sets_table(report)}

## How surely each model refuses

![Refusal scores by kind](refusal_scores.png)

## What stage 1 did to the states of layer {settings["layer"]}

Held-out prompts, seen along the direction that separates the training pairs.

![States before and after stage 1](state_map.png)

## How refusal is learnt

Development prompts along safety SFT.

![Refusal probability along safety SFT](refusal_during_sft.png)

## Time and memory

Stage 1 {seconds["stage1"]:.0f} s, stage 2 {seconds["stage2"]:.0f} s, safety SFT alone {seconds["safety_sft"]:.0f} s,
evaluation {seconds["evaluate"]:.0f} s, in all {seconds["total"]:.0f} s on {report["hardware"]}; peak memory
{report["peak_memory_bytes"] / 1e9:.1f} GB.

## Settings

| setting | value |
|---|---|
{done}

Versions: {", ".join(f"{k} {v}" for k, v in report["versions"].items())}.
""",
        encoding="utf-8",
    )


# --- the model card ---------------------------------------------------------------------------------------------------

Form = Literal["adapter", "merged", "gguf"]
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
RELATIONS = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}  # as the Hub names them
WHAT = {
    "adapter": "A LoRA adapter",
    "merged": "A LoRA adapter merged into its base",
    "gguf": "GGUF files of a LoRA adapter merged into its base,",
}
USE = {
    "adapter": """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{place}")
tokenizer = AutoTokenizer.from_pretrained("{place}")
```""",
    "merged": """```python
from transformers import pipeline

chat = pipeline("text-generation", "{place}")
print(chat([{{"role": "user", "content": "How do I kill a Python process?"}}])[0]["generated_text"][-1]["content"])
```""",
    "gguf": "`llama-cli -m FILE.gguf` of llama.cpp, and what is built on it; the chat template is inside.",
}
PLACE = "path/to/this/folder"


def is_hub_name(model: str) -> bool:
    """Whether a model's name is one that others can load: owner/name, and no folder of this machine."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists()


def _front_matter(report: dict[str, Any], form: Form, licence: str | None) -> str:
    lines = [f"license: {licence}"] if licence else []
    if is_hub_name(report["model"]):
        lines += [f"base_model: {report['model']}", f"base_model_relation: {RELATIONS[form]}"]
    if sets := _public_sets(report["settings"]):
        lines.append(f"datasets: [{', '.join(dict.fromkeys(one.name for one in sets))}]")
    lines += [f"library_name: {LIBRARIES[form]}", "pipeline_tag: text-generation", "language: en"]
    return "\n".join([*lines, "tags: [lora, safety, over-refusal, dcr]"])


def _public_sets(settings: dict[str, Any]) -> list[HubSet]:
    return [one for rows in TRAINING_FILES for one in sources(settings[rows])]


def _origin(path: str) -> str:
    """Where a file of training rows comes from, and its licence. Told from the end of the path: a run folder may have
    been copied from another machine."""
    sets = [f"[{one.name}](https://huggingface.co/datasets/{one.name}), {one.licence}" for one in sources(path)]
    if Path(path).parts[-3:-1] == SHIPPED.parts[-2:] or (sets and Path(path).name == "pairs.jsonl"):
        sets.append("shipped with dcr-lite, Apache-2.0")
    return "; ".join(sets) or "rows of its own"


def _licences(settings: dict[str, Any]) -> str:
    """What the licences of public rows forbid, as a sentence; nothing where they forbid nothing."""
    bound = [f"{one.name}, {one.licence}" for one in _public_sets(settings) if "-NC-" in one.licence]
    return f" Some training rows are licensed for non-commercial use: {'; '.join(bound)}." if bound else ""


def model_card(report: dict[str, Any], form: Form, licence: str | None = None, place: str = PLACE) -> str:
    """README.md of a folder or a page with the adapter, merged weights or GGUF files, in the form that the Hugging Face
    Hub reads. licence: the base's, where it is known. place: what a reader loads: the folder, or the page's name."""
    data, settings, name = report["data"], report["settings"], report["model"].rstrip("/").split("/")[-1]
    four_bit = " with its weights in 4 bits" if report.get("four_bit") else ""
    otherwise = {
        "adapter": "",
        "merged": f" The numbers above are of the adapter on the base{four_bit}; merged weights round a little.",
        "gguf": f" The numbers above are of the adapter on the base{four_bit}; these files round a little, q8_0 more.",
    }[form]
    return f"""---
{_front_matter(report, form, licence)}
---

# {name}, aligned with DCR

{WHAT[form]} trained in two stages with [dcr-lite](https://pypi.org/project/dcr-lite/): contrastive refinement up to
layer {settings["layer"]}, then safety SFT. The aim is to refuse toxic prompts and to answer those that only sound
toxic; the table says how far this run got. Method: Lu et al., arXiv 2603.03323.

## Before and after

{results_table(report)}

Refusal rates on held-out prompts with 95 % Wilson intervals, seed {report["seed"]}. J is the rate on toxic prompts
minus that on seemingly toxic ones; AUROC says how well the log-odds of refusing tell the two apart.

## Use

{USE[form].format(place=place)}

## Training data

{data["pairs"]} pairs of a toxic and a seemingly toxic prompt for stage 1 ({_origin(settings["pairs"])});
{data["instructions"]} instructions ({_origin(settings["instruction_rows"])}) and {data["refusals"]} refusals
({_origin(settings["refusal_rows"])}) for stage 2.

## Licence

{name}'s own{f" ({licence})" if licence else ""}, which applies to weights derived from it.{_licences(settings)}

## Limits

A small data set and, in the numbers above, one seed. Refusals are judged by how answers talk. Prompts in other styles
or languages than those measured may be treated otherwise. The model is more discerning, not safe: test it on your own
prompts before you rely on it.{otherwise}
"""
