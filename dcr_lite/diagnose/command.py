"""``dcr-lite diagnose``: kernel similarities, layers and refusals of a finished run, as tables, plots and JSON.

Development pairs and instructions are measured, and for the refusals by kind the answers that the run has kept. Every
state of the model (stock, after stage 1, after stage 2, safety SFT alone, as far as the run has them, each as trained,
without the dial) is kept when it is measured, so that a
stopped diagnosis can be continued.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import read_prompts
from dcr_lite.diagnose.ntk import label_similarities
from dcr_lite.diagnose.plots import draw_by_kind, draw_layers, draw_similarities
from dcr_lite.diagnose.refusals import changed_prompts, kinds_in, rates_by_kind
from dcr_lite.diagnose.report import write_report
from dcr_lite.errors import UserError
from dcr_lite.files import OnlyOne, load_tensors, read_state, remove_partials, write_json, write_state
from dcr_lite.measure.answers import answers_to
from dcr_lite.method.contrastive import GEOMETRY_PAIRS, REFERENCE_PAIRS, ContrastiveConfig, encode_pairs, first_pairs
from dcr_lite.method.layers import layer_geometries, layer_separations, suggested_layer
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.states import last_states
from dcr_lite.names import BASELINE, DCR, models_of
from dcr_lite.run import inputs, opening
from dcr_lite.run.long_rows import rows_of_run
from dcr_lite.run.plots import draw_refusal_during_sft, refusal_curves
from dcr_lite.run.run_folder import read_settings
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Device, Settings, layers_between

RESTORE_RUN = "Restore the run folder, or choose another run."


def diagnose(folder: Path, pairs: int, projections: int, device: Device = "auto") -> dict[str, Any]:
    """Measure a finished run and write diagnosis.json, diagnosis.md and plots to its folder ``diagnosis``; returns what
    the JSON holds. ``pairs``: development pairs, and as many plain prompts, whose kernel is measured with
    ``projections`` (see ntk.py)."""
    for name, value in (("--pairs", pairs), ("--projections", projections)):
        if value < 2:
            raise UserError(f"{name} {value}: at least 2 are needed")
    settings = replace(read_settings(folder), device=device)
    opening.require_finished(folder)
    out = folder / "diagnosis"
    with OnlyOne(out / "diagnosis.lock", "diagnose another run"):
        remove_partials(out)
        return _diagnose(settings, folder, out, pairs, projections)


def _diagnose(settings: Settings, folder: Path, out: Path, pairs: int, projections: int) -> dict[str, Any]:
    # Read first: a damaged file is known before the model is measured.
    *_, compared_with, dcr = models_of(settings.compare_with)
    held_out = [prompt for path in settings.evaluation for prompt in read_prompts(path)]
    files = (folder / "answers" / f"{name}.jsonl" for name in (compared_with, dcr))
    before, after = (answers_to(held_out, file, RESTORE_RUN) for file in files)
    kinds, curves = kinds_in(settings.evaluation), refusal_curves(folder / "metrics.jsonl")
    states = _states(settings, out, pairs, projections)
    stock = states["stock"]["separation"]
    candidates = {layer: stock[layer] for layer in layers_between(len(stock))}
    suggested = suggested_layer(candidates, states["stock"]["development_pairs"])
    diagnosis: dict[str, Any] = {
        "run": str(folder),
        "model": settings.model,
        "layer": settings.layer,
        "suggested_layer": suggested,
        "separation": {name: state["separation"] for name, state in states.items()},
        "kernel": {name: state["kernel"] for name, state in states.items()},
        "refusal_during_sft": curves,
        "compared_with": compared_with,
        "by_kind": rates_by_kind(before, after, kinds),
        "changed_prompts": changed_prompts(before, after, kinds),
    }
    write_json(diagnosis, out / "diagnosis.json")
    draw_layers(diagnosis["separation"], settings.layer, suggested, out / "layers.png")
    draw_similarities(diagnosis["kernel"], out / "kernel.png")
    if curves:
        draw_refusal_during_sft(curves, out / "refusal_during_sft.png")
    draw_by_kind(diagnosis["by_kind"], compared_with, out / "by_kind.png")
    write_report(diagnosis, out / "diagnosis.md")
    return diagnosis


def _states(settings: Settings, out: Path, pairs: int, projections: int) -> dict[str, dict[str, Any]]:
    """{separation, development_pairs, kernel} of every state of the model, by name. Each is kept in ``out``, and
    measured unless it is there with the same options."""
    on = opening.machine(settings)
    options = {"pairs": pairs, "projections": projections, "precision": str(on.precision), "four_bit": on.four_bit}
    stages = {name: getattr(settings, name) != "no" for name in ("stage1", "stage2")}
    trained = stages | {BASELINE: BASELINE in settings.compare_with}
    states = ["stock", *(name for name, there in trained.items() if there)]
    files = {name: out / f"{name}.json" for name in states}
    cure = "Delete it to have it measured again."
    found = {name: read_state(file, cure) for name, file in files.items() if file.exists()}
    found = {name: state for name, state in found.items() if state.get("options") == options}
    missing = [name for name in states if name not in found]
    if missing:
        for name, state in _measure(settings, missing, pairs, projections):
            found[name] = {"options": options, **state}
            write_state(found[name], files[name])
    return {name: found[name] for name in states}


def _measure(
    settings: Settings, states: list[str], pairs: int, projections: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Load the model and measure it in each of the states: (name, {separation, development_pairs, kernel})."""
    data = inputs.load_data(settings)
    model, _ = opening.load_model(replace(settings, backend="transformers"))  # whose graphs can be replayed
    data = rows_of_run(model, data, settings)
    config = ContrastiveConfig.of(settings)
    training, development = encode_pairs(model, data.training), encode_pairs(model, data.development)
    n = len(data.development)
    plain = [prompt for prompt in data.watched if prompt.label == "plain"]
    prompts = {
        "toxic": development[:n][:pairs],
        "seemingly_toxic": development[n:][:pairs],
        "plain": encode_asked(model.tokenizer, plain[:pairs], model.window),
    }
    adapters.activate(model, DCR)  # whose first weights change nothing: the stock model, with weights to train
    stock_states = last_states(model, first_pairs(training, GEOMETRY_PAIRS))[:, :, 0]
    geometries = layer_geometries(stock_states, config.centre, config.whiten)
    reference = first_pairs(training, REFERENCE_PAIRS)
    with progress_bar("Diagnosis", len(states) * (1 + sum(map(len, prompts.values())))) as shown:
        for name in states:
            if name != "stock":
                file = settings.run / name / adapters.WEIGHTS
                weights = load_tensors(file, RESTORE_RUN)
                adapters.set_adapter_weights(model, DCR, weights)
                adapters.activate(model, DCR)
            separation = layer_separations(model, geometries, reference, development)
            shown.advance(1)
            kernel = label_similarities(model, DCR, settings.layer, prompts, projections, shown.advance)
            yield name, {"separation": separation, "development_pairs": n, "kernel": kernel}
