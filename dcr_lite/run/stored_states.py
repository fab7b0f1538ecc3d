"""What a run keeps of the states at layer L: computed after stage 1, read by stage 2, the map and the readings."""

import numpy as np
import torch

from dcr_lite.data.rows import Conversation
from dcr_lite.data.splits import most_toxic, safety_mixture
from dcr_lite.measure.metrics import auroc
from dcr_lite.method import losses
from dcr_lite.method.contrastive import (
    REFERENCE_PAIRS,
    Contrastive,
    encode_pairs,
    first_pairs,
)
from dcr_lite.method.geometry import Geometry, reads_as_toxic, state_map
from dcr_lite.method.losses import Loss
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states
from dcr_lite.names import BASELINE, DCR, LABELS, STOCK
from dcr_lite.run.discernment import MAP_PAIRS, Discernment, Discernments
from dcr_lite.run.inputs import Data
from dcr_lite.run.plots import draw_state_map
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.settings import Settings


def loss_of(settings: Settings) -> Loss:
    """The contrastive loss that the settings name."""
    if settings.paper or settings.contrastive_loss == "circle":
        return losses.circle(settings.margin, settings.scale)
    if settings.contrastive_loss == "info_nce":
        return losses.info_nce(settings.temperature)
    return losses.supervised_contrastive(settings.temperature)


def contrastive_settings(settings: Settings) -> Contrastive:
    """How stage 1 trains under these settings."""
    return Contrastive(
        layer=settings.layer,
        loss=loss_of(settings),
        centre="none" if settings.paper else settings.centre,
        whiten=settings.whiten and not settings.paper,
        steps=settings.contrastive_steps,
        batch_size=settings.contrastive_batch,
        learning_rate=settings.contrastive_learning_rate,
    )


def stage1_states(model: Model, data: Data, settings: Settings, geometry: Geometry) -> dict[str, torch.Tensor]:
    """What later parts read at layer L, computed once: the geometry, and the states before (STOCK) and after (DCR)
    stage 1 of the pairs that read-outs rest on, of development pairs and of held-out prompts; after stage 1 also those
    of the toxic prompts that stage 2 may draw."""
    rows = {
        "reference": first_pairs(encode_pairs(model, data.training), REFERENCE_PAIRS),
        "development": encode_pairs(model, data.development),
    }
    if data.held_out:
        rows["held_out"] = encode_prompts(model.tokenizer, [p.prompt for p in data.held_out], model.window)
    kept = {"mean": geometry.mean}
    if geometry.whitening is not None:
        kept["whitening"] = geometry.whitening
    adapters.activate(model, DCR)
    kept |= {f"{DCR}.{name}": layer_states(model, some, settings.layer) for name, some in rows.items()}
    with adapters.stock(model):
        kept |= {f"{STOCK}.{name}": layer_states(model, some, settings.layer) for name, some in rows.items()}
    if settings.discerned_refusals:
        adapters.activate(model, DCR)
        prompts = encode_prompts(model.tokenizer, [row.prompt for row in data.refusals], model.window)
        kept[f"{DCR}.refusals"] = layer_states(model, prompts, settings.layer)
    return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}


def stage2_rows(data: Data, settings: Settings, states: dict[str, torch.Tensor]) -> list[Conversation]:
    """What DCR's stage 2 trains on. Stage 1 leaves some toxic prompts among the seemingly toxic ones; to refuse those
    would teach the look that the two kinds share, so they are left out. ``states``: see ``stage1_states``."""
    refusals = data.refusals
    if settings.discerned_refusals:
        geometry = _geometry_of(states, settings)
        toxicity = reads_as_toxic(geometry, states[f"{DCR}.reference"], states[f"{DCR}.refusals"]).tolist()
        refusals = most_toxic(refusals, toxicity, settings.refusals)
    return safety_mixture(data.instructions, refusals, settings.instructions, settings.refusals, settings.seed)


def _geometry_of(states: dict[str, torch.Tensor], settings: Settings) -> Geometry:
    return Geometry(contrastive_settings(settings).centre, states["mean"], states.get("whitening"))


def stage2_above(settings: Settings) -> int:
    """The layer above which stage 2 of DCR trains; -1 for all layers."""
    return settings.layer if settings.sft_layers == "above" else -1


def fit_discernments(model: Model, data: Data, settings: Settings, states: dict[str, torch.Tensor]) -> Discernments:
    """How to read the layer-L states of the three models: from training and development pairs alone. ``states``: see
    ``stage1_states``; they are DCR's own to the end unless stage 2 trained all layers."""
    stale = [BASELINE] if settings.sft_layers == "above" else [BASELINE, DCR]
    fresh = {
        "reference": first_pairs(encode_pairs(model, data.training), REFERENCE_PAIRS),
        "development": encode_pairs(model, data.development),
    }
    for adapter in stale:
        adapters.activate(model, adapter)
        states = states | {
            f"{adapter}.{name}": layer_states(model, rows, settings.layer).cpu() for name, rows in fresh.items()
        }
    geometry = _geometry_of(states, settings)
    models = {
        name: Discernment.fit(geometry, states[f"{name}.reference"], states[f"{name}.development"])
        for name in (DCR, BASELINE, STOCK)
    }
    shown = data.development[:MAP_PAIRS]
    return Discernments(settings.layer, [p.toxic for p in shown], [p.seemingly_toxic for p in shown], models)


def _draw_states(run: RunFolder, data: Data, settings: Settings, states: dict[str, torch.Tensor]) -> None:
    kinds = np.array([p.label for p in data.held_out])
    geometry = _geometry_of(states, settings)
    maps, aurocs = {}, {}
    for title, model in (("before stage 1", STOCK), ("after stage 1", DCR)):
        maps[title] = state_map(geometry, states[f"{model}.reference"], states[f"{model}.held_out"]).double().numpy()
        sides = [maps[title][kinds == label, 0].tolist() for label in LABELS[:2]]
        aurocs[title] = auroc(*sides) if all(sides) else None
    draw_state_map(maps, kinds, aurocs, settings.layer, run.path / "state_map.png")
