"""What stage 1's defaults rest on: how far apart unseen pairs lie after each variant of it.

    python benchmarks/stage1_choices.py                        # all variants, seed 0: three minutes each on one core
    python benchmarks/stage1_choices.py --only circle --seeds 0 1
    python benchmarks/stage1_choices.py --layers               # the stock model's layers, one pass, no training
    python benchmarks/stage1_choices.py --only twice --settings.model FOLDER --settings.layer 14 \
        --settings.contrastive-layers 8 --settings.contrastive-batch 64 --settings.contrastive-steps 80 \
        --settings.contrastive-learning-rate 5e-4              # another model, at the settings that a run finds for it

One line per variant: the AUROC of toxic against seemingly toxic states of the development pairs, which share no focus
word with the pairs that stage 1 trains on, read along the difference of the two means of training pairs. "own": in the
geometry that the variant trains in; it also picks the step that is kept. "whitened": every variant in the default's, so
that the columns of two variants can be compared. 95 % bootstrap intervals over prompts. The held-out prompts are not
used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import _choices
import tyro
from _kept import digest_of

from dcr_lite.data.rows import Pair, read_conversations
from dcr_lite.files import SHIPPED
from dcr_lite.measure.metrics import auroc, auroc_interval, with_interval
from dcr_lite.method.contrastive import (
    REFERENCE_PAIRS,
    ContrastiveConfig,
    ContrastiveRefinement,
    encode_pairs,
    first_pairs,
    stock_geometry,
)
from dcr_lite.method.layers import layer_geometries
from dcr_lite.method.loop import Loop
from dcr_lite.method.read_out import read_out
from dcr_lite.model.states import last_states, layer_states
from dcr_lite.names import DCR
from dcr_lite.run import inputs, opening
from dcr_lite.run.recipes import find_recipe, load_recipe
from dcr_lite.settings import Settings

# What a run finds for this model, given; and all layers up to L train, as the tables of docs/ablations.md have it.
SETTINGS = replace(
    load_recipe(find_recipe("smollm2_135m")).SETTINGS, layer=15, contrastive_layers=0, contrastive_learning_rate=1e-3
)
RAW: dict[str, Any] = {"centre": "none", "whiten": False}
CENTRED: dict[str, Any] = {"centre": "batch", "whiten": False}
CIRCLE, INFO_NCE = {"contrastive_loss": "circle"}, {"contrastive_loss": "info_nce"}


def unmatched(pairs: list[Pair]) -> list[Pair]:
    """Both sides as they are, but hardly ever the two of one pair in one step: the other is half a list away."""
    shift = len(pairs) // 2
    return [replace(p, seemingly_toxic=pairs[i - shift].seemingly_toxic) for i, p in enumerate(pairs)]


def other_source(pairs: list[Pair]) -> list[Pair]:
    """Toxic prompts of another file, written without a counterpart, against the pairs' seemingly toxic sides."""
    toxic = [row.prompt for row in read_conversations(SHIPPED / "refusals.jsonl")]
    return [replace(p, toxic=toxic[i % len(toxic)]) for i, p in enumerate(pairs)]


def two_to_one(pairs: list[Pair]) -> list[Pair]:
    """Half as many seemingly toxic prompts, each twice as often: the paper's ratio, its batches balanced as there."""
    half = len(pairs) // 2
    return [replace(p, seemingly_toxic=pairs[i % half].seemingly_toxic) for i, p in enumerate(pairs)]


def one_to_two(pairs: list[Pair]) -> list[Pair]:
    """Half as many toxic prompts, each twice as often."""
    half = len(pairs) // 2
    return [replace(p, toxic=pairs[i % half].toxic) for i, p in enumerate(pairs)]


# Changes of the settings; "pairs": a function that changes the training pairs, "times": what multiplies a setting.
VARIANTS: dict[str, dict[str, Any]] = {
    "default: supervised contrastive, centred, whitened": {},
    "supervised contrastive, centred": CENTRED,
    "supervised contrastive, raw states": RAW,
    "circle, centred, whitened": CIRCLE,
    "circle, centred, whitened, scale 2": CIRCLE | {"scale": 2.0},  # as soft as the default's temperature
    "circle, centred": CIRCLE | CENTRED,
    "circle, raw states (the paper's)": CIRCLE | RAW,
    "circle, raw states, learning rate 2e-4": CIRCLE | RAW | {"contrastive_learning_rate": 2e-4},
    "info nce, centred, whitened": INFO_NCE,
    "info nce, centred": INFO_NCE | CENTRED,
    "info nce, raw states": INFO_NCE | RAW,
    "unmatched pairs": {"pairs": unmatched},
    "toxic prompts of another source": {"pairs": other_source},
    "two toxic to one seemingly toxic": {"pairs": two_to_one},
    "one toxic to two seemingly toxic": {"pairs": one_to_two},
    "layer 9": {"layer": 9},
    "layer 12": {"layer": 12},
    "layer 18": {"layer": 18},
    "layer 21": {"layer": 21},
    "temperature 0.1": {"temperature": 0.1},
    "temperature 0.2": {"temperature": 0.2},
    "temperature 1": {"temperature": 1.0},
    "centred by the stock mean, whitened": {"centre": "stock"},
    "half the learning rate": {"times": {"contrastive_learning_rate": 0.5}},
    "twice the learning rate": {"times": {"contrastive_learning_rate": 2}},
    "a quarter of the steps": {"times": {"contrastive_steps": 0.25}},
    "half the steps": {"times": {"contrastive_steps": 0.5}},
    "twice the steps": {"times": {"contrastive_steps": 2}},
    "half the rank": {"times": {"rank": 0.5}},
    "twice the rank": {"times": {"rank": 2}},
    "twice the batch": {"times": {"contrastive_batch": 2}},
}


@dataclass
class Choices(_choices.Choices):
    """What to run."""

    settings: Settings = field(default_factory=lambda: SETTINGS)
    """Model, pairs and stage 1 of the first variant; none is found."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the adapter, the split and the order of pairs."""
    layers: bool = False
    """Read the stock model at every layer instead: which layers separate unseen pairs before any training."""
    json: Path = Path("runs/stage1_choices.json")
    """File of the results; variants found there are not run again."""


def changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    """The settings of a variant."""
    values = {name: value for name, value in changes.items() if name not in ("pairs", "times")}
    for name, factor in changes.get("times", {}).items():
        usual = getattr(settings, name)
        values[name] = type(usual)(usual * factor)
    return replace(settings, **values)


def variant(settings: Settings, change: Callable[[list[Pair]], list[Pair]], checkpoint: Path) -> dict[str, Any]:
    """Stage 1 on pairs that are changed, and how well the development pairs are separated afterwards. A training that
    was stopped goes on from the checkpoint."""
    seed, data = settings.seed, inputs.load_data(settings)
    model, _ = opening.load_model(settings)
    config = ContrastiveConfig.of(settings)
    training, rows = change(data.training), encode_pairs(model, data.training)
    geometries = {
        "own": stock_geometry(model, encode_pairs(model, training), config),
        "whitened": stock_geometry(model, rows, replace(config, centre="batch", whiten=True)),
    }
    stage = ContrastiveRefinement(model, DCR, training, data.development, config, geometries["own"], seed)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    done = Loop(stage, checkpoint).run()
    row: dict[str, Any] = {"best_step": done.best_step, "seconds": done.seconds}
    row["development_auroc"] = [m["development_auroc"] for m in done.metrics if "development_auroc" in m]
    # Read by matched pairs whatever the variant trained on.
    reference = layer_states(model, first_pairs(rows, REFERENCE_PAIRS), config.layer)
    unseen = layer_states(model, encode_pairs(model, data.development), config.layer)
    return row | {key: _read(geometry, reference, unseen) for key, geometry in geometries.items()}


def stock_layers(settings: Settings) -> None:
    """Prints a line for every layer of the stock model, with geometry and direction from all training pairs."""
    data = inputs.load_data(settings)
    model, _ = opening.load_base(settings)
    seen, unseen = (last_states(model, encode_pairs(model, p))[:, :, 0] for p in (data.training, data.development))
    geometries = layer_geometries(seen, settings.centre, settings.whiten)
    print("| layer | AUROC |\n|---|---|")
    for layer, states in enumerate(zip(geometries, seen, unseen, strict=True)):
        print(f"| {layer} | {_cell(_read(*states))} |", flush=True)


def _read(geometry: Any, reference: Any, unseen: Any) -> dict[str, Any]:
    """AUROC and its interval of unseen pairs along the direction of reference pairs."""
    reading, direction = read_out(geometry, reference)
    scores = (reading(unseen) @ direction).tolist()
    sides = scores[: len(scores) // 2], scores[len(scores) // 2 :]
    return {"auroc": auroc(*sides), "ci95": list(auroc_interval(*sides))}


def _cell(read: dict[str, Any]) -> str:
    return with_interval(read["auroc"], read["ci95"], ".3f")


def main(choices: Choices) -> None:
    if choices.layers:
        stock_layers(choices.settings)
        return
    print("| variant | seed | own | whitened | kept step | seconds |\n|---|---|---|---|---|---|")
    for seed in choices.seeds:
        for name, changes in choices.named(VARIANTS):
            settings = changed(replace(choices.settings, seed=seed), changes)
            of = digest_of(settings, *settings.files.values())
            row = choices.stored(name, seed, of) or choices.store(
                name, seed, of, variant(settings, changes.get("pairs", list), choices.checkpoint(name, seed, of))
            )
            cells = [name, str(seed), _cell(row["own"]), _cell(row["whitened"]), str(row["best_step"])]
            print(f"| {' | '.join(cells)} | {row['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
