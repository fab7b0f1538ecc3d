"""What a run keeps of the states at layer L: computed after stage 1, read by stage 2, dial, map and readings."""

import numpy as np
from torch import Tensor

from dcr_lite.data.rows import Conversation
from dcr_lite.data.splits import most_toxic, pair_batches, places_read, safety_mixture
from dcr_lite.files import load_tensors, save_tensors
from dcr_lite.measure.metrics import auroc
from dcr_lite.method.contrastive import REFERENCE_PAIRS, ContrastiveConfig, encode_pairs, first_pairs
from dcr_lite.method.dial_fitting import PAIRS, Readers, fit_readers, prompts_read
from dcr_lite.method.geometry import Geometry
from dcr_lite.method.read_out import reads_as_toxic, state_map
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states
from dcr_lite.model.states_below import RefinedStates
from dcr_lite.names import BASELINE, DCR, LABELS, MODEL_TITLES, STOCK, models_of
from dcr_lite.run.discernment import MAP_PAIRS, Discernment, Discernments
from dcr_lite.run.inputs import Data
from dcr_lite.run.plots import draw_state_map
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Settings

# MODEL.ROWS -> (prompts, d_model); "mean" and "whitening" of the geometry; KEY and READER of the dial
States = dict[str, Tensor]
KEY, READER = "dial.key", "dial.reader"


def store_states(
    run: RunFolder, model: Model, data: Data, settings: Settings, geometry: Geometry, refined: RefinedStates
) -> None:
    """Write what later steps read at layer L (see ``compute_states``), and the dial's vectors that are fitted there:
    whole or absent, whenever the machine stops. refined: stage 1's."""
    states = compute_states(model, data, settings, geometry)
    if reads_for_dial(settings):
        states |= zip((KEY, READER), readers_of(model, data, settings, refined), strict=True)
    save_tensors(states, run.layer_states)


def readers_of(model: Model, data: Data, settings: Settings, refined: RefinedStates | None = None) -> Readers:
    """The key and the reader of a dial of the DCR adapter as it is. refined: stage 1's, else they are computed."""
    at_once = model.tokens_per_pass
    if refined is None:
        config = ContrastiveConfig.of(settings)
        rows, n = encode_pairs(model, data.training) + encode_pairs(model, data.development), len(data.training)
        batches = pair_batches(n, config.batch_size, config.steps, settings.seed)
        places = places_read(n, len(rows) - 2 * n, batches, REFERENCE_PAIRS, PAIRS)
        model.plan_passes("stage1")  # the same passes round alike
        adapters.activate(model, DCR)
        refined = RefinedStates(model, {i: rows[i] for i in places}, config.first, config.layer)
    with progress_bar("Prompts for the dial", prompts_read(data.training, data.instructions)) as shown:
        found = fit_readers(model, DCR, settings.layer, data.training, data.instructions, shown.advance, refined)
    model.tokens_per_pass = at_once
    return found


def reads_for_dial(settings: Settings) -> bool:
    """Whether the dial's key and reader are fitted after stage 1: no later step changes what they read."""
    return settings.dial != "none" and (settings.stage2 == "no" or settings.sft_layers == "above")


def load_states(run: RunFolder) -> States:
    """What ``store_states`` wrote."""
    return load_tensors(run.layer_states, "Delete it to have it computed again.")


def dial_readers(run: RunFolder) -> Readers | None:
    """The dial's key and reader, if they were fitted after stage 1."""
    states = load_states(run)
    return (states[KEY], states[READER]) if KEY in states and READER in states else None


def compute_states(model: Model, data: Data, settings: Settings, geometry: Geometry) -> States:
    """The geometry, and the states before (STOCK) and after (DCR) stage 1 of the pairs that read-outs rest on, of
    development pairs and of held-out prompts; after stage 1 also those of the toxic prompts that stage 2 may draw."""
    rows = _read_out_rows(model, data)
    if data.held_out:
        rows["held_out"] = encode_asked(model.tokenizer, data.held_out, model.window)
    kept = {"mean": geometry.mean}
    if geometry.whitening is not None:
        kept["whitening"] = geometry.whitening
    adapters.activate(model, DCR)
    kept |= {f"{DCR}.{name}": layer_states(model, some, settings.layer) for name, some in rows.items()}
    with adapters.stock(model):
        kept |= {f"{STOCK}.{name}": layer_states(model, some, settings.layer) for name, some in rows.items()}
    if settings.discerned_refusals and settings.stage2 != "no":
        adapters.activate(model, DCR)
        prompts = encode_asked(model.tokenizer, data.refusals, model.window)
        kept[f"{DCR}.refusals"] = layer_states(model, prompts, settings.layer)
    return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}


def _read_out_rows(model: Model, data: Data) -> dict[str, list[list[int]]]:
    return {
        "reference": first_pairs(encode_pairs(model, data.training), REFERENCE_PAIRS),
        "development": encode_pairs(model, data.development),
    }


def geometry_of(states: States, settings: Settings) -> Geometry:
    """The stock model's geometry, as it was stored."""
    return Geometry(ContrastiveConfig.of(settings).centre, states["mean"], states.get("whitening"))


def stage2_rows(data: Data, settings: Settings, states: States) -> list[Conversation]:
    """What DCR's stage 2 trains on. Stage 1 leaves some toxic prompts among the seemingly toxic ones; to refuse those
    would teach the surface form that the two kinds share, so they are left out."""
    refusals, sizes = data.refusals, settings.sizes
    instructions = min(sizes["instructions"], len(data.instructions))  # of its own answers some were left out
    if settings.discerned_refusals:
        geometry = geometry_of(states, settings)
        toxicity = reads_as_toxic(geometry, states[f"{DCR}.reference"], states[f"{DCR}.refusals"]).tolist()
        refusals = most_toxic(refusals, toxicity, sizes["refusals"])
    return safety_mixture(data.instructions, refusals, instructions, sizes["refusals"], settings.seed)


def fit_discernments(model: Model, data: Data, settings: Settings, states: States) -> Discernments:
    """How to read the layer-L states of the run's models: from training and development pairs alone. The stored states
    are DCR's own to the end unless stage 2 trained all layers."""
    names = models_of(settings.compare_with)
    stale: list[str] = [BASELINE] if BASELINE in names else []
    if settings.sft_layers == "all" and settings.stage2 != "no":
        stale.append(DCR)
    rows = _read_out_rows(model, data)
    for adapter in stale:
        adapters.activate(model, adapter)
        states = states | {
            f"{adapter}.{name}": layer_states(model, some, settings.layer).cpu() for name, some in rows.items()
        }
    geometry = geometry_of(states, settings)
    models: dict[str, Discernment] = {
        name: Discernment.fit(geometry, states[f"{name}.reference"], states[f"{name}.development"])
        for name in reversed(names)
    }
    shown = data.development[:MAP_PAIRS]
    return Discernments(settings.layer, [p.toxic for p in shown], [p.seemingly_toxic for p in shown], models)


def draw_states(run: RunFolder, data: Data, settings: Settings, states: States) -> None:
    """state_map.png: held-out prompts before and after stage 1, or in the stock model alone where there is none."""
    kinds = np.array([p.label for p in data.held_out])
    geometry = geometry_of(states, settings)
    maps, aurocs = {}, {}
    refined = {"before stage 1": STOCK, "after stage 1": DCR}
    for title, model in ({MODEL_TITLES[STOCK]: STOCK} if settings.stage1 == "no" else refined).items():
        maps[title] = state_map(geometry, states[f"{model}.reference"], states[f"{model}.held_out"]).double().numpy()
        sides = [maps[title][kinds == label, 0].tolist() for label in LABELS[:2]]
        aurocs[title] = auroc(*sides) if all(sides) else None
    draw_state_map(maps, kinds, aurocs, settings.layer, run.path / "state_map.png")
