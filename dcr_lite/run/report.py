"""report.json, report.md and the model card: what a run found, for programs, for readers and for the Hub."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from dcr_lite.data.paper_data import HubSet, sources
from dcr_lite.files import SHIPPED, write_text
from dcr_lite.model import distributed
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE, LABELS, METHODS, NAMES
from dcr_lite.run.inputs import Data
from dcr_lite.run.machine import hardware, peak_memory_bytes, versions
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.settings import SHIPPED_FILES, Settings


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
    rows = []
    for method, result in report["methods"].items():
        rates = [_cell(result["overall"].get(label)) for label in LABELS]
        rows.append([METHODS[method], *rates, *(_number(result["discernment"][key]) for key in ("j", "auroc"))])
    return markdown_table(["", "toxic ↑", "seemingly toxic ↓", "plain ↓", "J ↑", "AUROC ↑"], rows)


def sets_table(report: dict[str, Any]) -> str:
    """Every set by itself as a Markdown table: refusal rates of the models with 95 % Wilson intervals."""
    sets = [result["sets"] for result in report["methods"].values()]
    rows = [
        [of_models[0]["name"], NAMES[of_models[0]["label"]], str(of_models[0]["n"]), *map(_cell, of_models)]
        for of_models in zip(*sets, strict=True)
    ]
    return markdown_table(["set", "label", "n", *(METHODS[method] for method in report["methods"])], rows)


def run_report(
    run: RunFolder, model: Model, source: str, data: Data, settings: Settings, results: dict[str, Any],
    drawing_seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """report.json: what was done with what, what it took, and ``results``, ``method_result`` by model."""
    done = {name: run.finished(name) or {} for name in ("stage1", "stage2", BASELINE)}
    seconds = {name: float(result.get("seconds", 0)) for name, result in done.items()}
    seconds["evaluate"] = sum(float((run.finished(f"evaluate_{m}") or {}).get("seconds", 0)) for m in results)
    seconds |= {"draw": drawing_seconds, "total": run.seconds()}
    return {
        "recipe": Path(sys.argv[0]).stem,
        "model": settings.model,
        "source": source,
        "four_bit": model.four_bit,
        "seed": settings.seed,
        "methods": results,
        "stage1": {k: done["stage1"].get(k) for k in ("best", "best_step")},
        "data": {"pairs": len(data.training), "development_pairs": len(data.development), **settings.sizes},
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "hardware": hardware(model.device),
        "processes": distributed.world(),
        "versions": versions(),
        "settings": settings.for_json(),
    }


def without_folders(value: Any) -> str:
    """A setting or an argument as text; of a path of this machine, which tells others nothing, the name alone."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(without_folders, value))
    return (
        Path(value).name
        if isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists())
        else str(value)
    )


def write_report(report: dict[str, Any], folder: Path) -> None:
    """report.md and the model card of the adapter: the result, the pictures, what was done."""
    seconds = report["seconds"]
    command = shlex.join(["python", *map(without_folders, sys.argv)])
    settings = markdown_table(
        ["setting", "value"], [(name, without_folders(value)) for name, value in report["settings"].items()]
    )
    write_text(folder / "adapter" / "README.md", model_card(report, "adapter"))
    write_text(
        folder / "report.md",
        f"""# {report["recipe"]}

`{command}` on {without_folders(report["model"])} ({report["source"]}), seed {report["seed"]}.

Refusal rates with 95 % Wilson intervals. J is the refusal rate on toxic prompts minus that on seemingly toxic ones;
AUROC says how well the log-odds of opening with a refusal tell the two apart (0.5 is chance). They are measured on
prompts that nothing was trained on or chosen by.

{results_table(report)}

![Refusal rates](refusal_rates.png)

Each set by itself:

{sets_table(report)}

## Refusal probability

![Refusal scores by label](refusal_scores.png)

## States of layer {report["settings"]["layer"]} before and after stage 1

Held-out prompts along the direction that separates the training pairs.

![States before and after stage 1](state_map.png)

## Refusal probability during safety SFT

Development prompts.

![Refusal probability during safety SFT](refusal_during_sft.png)

## Time and memory

Stage 1 {seconds["stage1"]:.0f} s, stage 2 {seconds["stage2"]:.0f} s, safety SFT alone {seconds["safety_sft"]:.0f} s,
evaluation {seconds["evaluate"]:.0f} s, in all {seconds["total"]:.0f} s on {report["hardware"]}; peak memory
{report["peak_memory_bytes"] / 1e9:.1f} GB.

## Settings

{settings}

Versions: {", ".join(f"{k} {v}" for k, v in report["versions"].items())}.
""",
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
    return [one for rows in SHIPPED_FILES for one in sources(settings[rows])]


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
layer {settings["layer"]}, then safety SFT. It is meant to refuse toxic prompts and to answer those that only sound
toxic; the table says how far it does. Method: Lu et al., arXiv 2603.03323.

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
or languages than those measured may be handled differently. The model is more discerning, not safe: test it on your own
prompts before you rely on it.{otherwise}
"""
