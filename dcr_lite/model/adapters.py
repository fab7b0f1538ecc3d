"""LoRA adapters: added, loaded, switched, saved, and which of their layers train."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from torch import Tensor, nn

from dcr_lite.errors import UserError, first_line
from dcr_lite.files import load_json, load_tensors, save_tensors, write_whole_folder
from dcr_lite.model import fused_layers, unsloth
from dcr_lite.model.configuration import of_decoder
from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.loading import Model

# What may be set in a plain LoRA adapter's configuration. Among the other fields are some that name a module to import.
PLAIN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
LARGEST_ALPHA = 1e6  # far above any that is in use
WEIGHTS = "adapter_model.safetensors"  # peft's name of the file
PREFIX = "base_model.model."  # peft's, of the names of modules
LAYER = re.compile(r"\.layers\.(\d+)\.")  # in such a name: the number of a decoder layer


def add_adapter(model: Model, name: str, rank: int, seed: int) -> None:
    """Add a fresh LoRA adapter on all linear layers of the decoder, and make it the active one.

    The scale alpha / rank is 1: the learning rate alone sets the size of a step.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules="all-linear",
        exclude_modules=_outside_decoder(model),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    if isinstance(model.network, PeftModel):
        model.network.add_adapter(name, config)
    else:
        model.network = get_peft_model(model.network, config, adapter_name=name)
        if model.backend.name == "unsloth":
            model.network = unsloth.speed_up_adapters(model.network)
    _make_ready(model, name)


def keep_on(model: Model, name: str, module: str) -> None:
    """Take an untrained adapter off every linear map but one, since what does nothing takes time all the same, and make
    it the active one. module: the map's name in the base model."""
    for key, layer in lora_layers(model).items():
        if key != module and name in layer.r:
            layer.delete_adapter(name)
    model.network.peft_config[name].target_modules = {module}
    activate(model, name)


def _outside_decoder(model: Model) -> str | None:
    """A pattern of the names of all modules outside the decoder, of a model that reads pictures as well. None of any
    other, where peft leaves out the output matrix by itself."""
    network = model.network.get_base_model() if isinstance(model.network, PeftModel) else model.network
    if of_decoder(network.config) is network.config:
        return None
    decoder = decoder_of(network)
    inside = next(name for name, module in network.named_modules() if module is decoder)
    return rf"(?!{re.escape(inside)}\.).*"


def load_adapter(model: Model, name: str, folder: Path) -> None:
    """Add the adapter in ``folder``, as peft saves it, and make it the active one.

    Raises UserError for an adapter that is damaged or of another model.
    """
    try:
        stored = _stored_weights(folder)
        load_tensors(folder / WEIGHTS, "Restore that folder, or choose another.")
        # The device is named, or peft would read the weights onto a card that the run does without.
        if isinstance(model.network, PeftModel):
            model.network.load_adapter(str(folder), name, torch_device=model.device)
        else:
            model.network = PeftModel.from_pretrained(model.network, str(folder), name, torch_device=model.device)
    except Exception as error:  # peft raises errors of every kind for a file that is not as it wrote it
        raise UserError(f"{folder}: this adapter is damaged or of another base model ({first_line(error)})") from None
    if stored != get_peft_model_state_dict(model.network, adapter_name=name, save_embedding_layers=False).keys():
        # peft itself only warns, and continues with fresh weights that do nothing.
        raise UserError(f"{folder}: this adapter is damaged or of another base model (its weights have other names)")
    _make_ready(model, name)


def _stored_weights(folder: Path) -> set[str]:
    """The names of the weights in an adapter's folder. Raises errors of many kinds where it is damaged, and ValueError
    for another kind of adapter, and for a rank that would take more memory than the weights explain."""
    config = load_json(folder / "adapter_config.json")
    if config["peft_type"] != "LORA" or any(value for key, value in config.items() if key not in PLAIN):
        raise ValueError("it is no plain LoRA adapter")
    if config.get("use_dora") or config.get("bias", "none") != "none":
        raise ValueError("it is no plain LoRA adapter: DoRA, or with biases")
    with safe_open(folder / WEIGHTS, "pt") as file:
        names = set(file.keys())
        largest = max(file.get_slice(name).get_shape()[0] for name in names if ".lora_A." in name)
    if not all(1 <= rank <= largest for rank in (config["r"], *(config.get("rank_pattern") or {}).values())):
        raise ValueError("its rank is not that of its weights")
    if not all(0 <= a <= LARGEST_ALPHA for a in (config["lora_alpha"], *(config.get("alpha_pattern") or {}).values())):
        raise ValueError("its lora_alpha is no usual number")
    return names


def _make_ready(model: Model, name: str) -> None:
    model.network.eval()  # all of it: new modules begin in the mode of training
    for layer in lora_layers(model).values():
        # Autocast picks the type of each product and would undo peft's own cast to float32.
        layer.cast_input_dtype_enabled = model.precision == torch.float32
    if model.device == "cpu":
        fused_layers.fuse(decoder_of(model.network))
    activate(model, name)


def activate(model: Model, name: str) -> None:
    """Make ``name`` the active adapter, with nothing trainable: peft would set every weight of it trainable."""
    model.network.set_adapter(name)
    model.network.requires_grad_(False)


@contextmanager
def stock(model: Model) -> Iterator[None]:
    """Within the block the model answers as it was loaded, without any adapter."""
    before = {layer: layer.disable_adapters for layer in lora_layers(model).values()}
    _disable(before, True)
    try:
        yield
    finally:
        for layer, disabled in before.items():
            _disable([layer], disabled)


def lora_layers(model: Model) -> dict[str, LoraLayer]:
    """The linear maps that an adapter is on, or was, by their names in the base model."""
    if not isinstance(model.network, PeftModel):
        return {}
    modules = model.network.get_base_model().named_modules()
    return {key: module for key, module in modules if isinstance(module, LoraLayer)}


def _disable(layers: Iterable[LoraLayer], disabled: bool) -> None:
    """As peft's enable_adapters does, but that sets which weights train as well, and so goes through all of them."""
    for layer in layers:
        layer._disable_adapters = disabled


def switch(model: Model, name: str | None) -> None:
    """Make ``name`` the active adapter, or none for the stock model, until the next switch."""
    _disable(lora_layers(model).values(), name is None)
    if name is None:
        model.network.requires_grad_(False)
    else:
        activate(model, name)


def train_only(model: Model, name: str, layers: Iterable[int]) -> list[nn.Parameter]:
    """Make the weights of adapter ``name`` in the given decoder layers trainable, all others not; returns them."""
    activate(model, name)
    decoder = decoder_of(model.network)
    chosen = []
    for i in layers:
        for key, parameter in decoder.layers[i].named_parameters():
            if f".{name}." in key:
                parameter.requires_grad_(True)
                chosen.append(parameter)
    if not chosen:
        raise UserError("no layer is left to train; choose a layer L below the last one")
    return chosen


def adapter_weights(model: Model, name: str) -> dict[str, Tensor]:
    """A copy of an adapter's weights on the CPU, keyed as in its safetensors file."""
    state = get_peft_model_state_dict(model.network, adapter_name=name, save_embedding_layers=False)
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}


def set_adapter_weights(model: Model, name: str, weights: dict[str, Tensor]) -> None:
    """Load weights that ``adapter_weights`` returned, whether or not some maps have more ranks in them or here (see
    ``set_extra_ranks``). To maps that are not among them the adapter adds nothing afterwards."""
    ranks = {}
    for module, layer in lora_layers(model).items():
        factor = weights.get(f"{PREFIX}{module}.lora_A.weight")
        if name in layer.r:
            if factor is None:
                layer.lora_B[name].weight.data.zero_()
            else:
                ranks[module] = len(factor)
    # With other ranks at every map it is another adapter, which is for peft to refuse; on a single map, a turned one.
    own = model.network.peft_config[name].r
    if ranks and (min(ranks.values()) == own or [own + 1] == list(ranks.values())):
        for module, rank in ranks.items():
            _set_rank(model, name, module, rank)
    result = set_peft_model_state_dict(model.network, weights, adapter_name=name)
    if result.unexpected_keys:
        raise UserError(f"adapter weights do not fit this model: {result.unexpected_keys[:3]}")


def scale(model: Model, name: str, share: float) -> None:
    """Keep only a share of what an adapter adds to the weights."""
    for layer in lora_layers(model).values():
        if name in layer.lora_B:
            layer.lora_B[name].weight.data *= share


def adapted_maps(model: Model, name: str, layer: int) -> list[str]:
    """The names in the base model of the linear maps of decoder layer ``layer`` that an adapter is on, such as
    "model.layers.15.mlp.down_proj"."""
    within = set(decoder_of(model.network).layers[layer].modules())
    return [key for key, module in lora_layers(model).items() if module in within and name in module.r]


def adapted_weight(model: Model, name: str, module: str) -> Tensor:
    """The weight of one linear map with what an adapter adds to it, (outputs, inputs), in float32; a 4-bit one is
    dequantised."""
    layer = model.network.get_base_model().get_submodule(module)
    a, b = (factor[name].weight.detach().float() for factor in (layer.lora_A, layer.lora_B))
    return torch.addmm(dequantize_module_weight(layer.base_layer).detach().float(), b, a, alpha=layer.scaling[name])


def set_extra_ranks(model: Model, name: str, module: str, a: Tensor, b: Tensor) -> None:
    """Let an adapter add ``b`` (outputs, ranks) times ``a`` (ranks, inputs) times x to what one linear map puts out for
    its input x: as more ranks of that map behind its own, which peft reads from the adapter's configuration. Those that
    were set before are replaced.

    module: the map's name in the base model, such as "model.layers.15.mlp.down_proj".
    """
    own = model.network.peft_config[name].r
    layer = _set_rank(model, name, module, own + len(a))
    layer.lora_A[name].weight.data[own:] = a
    layer.lora_B[name].weight.data[:, own:] = b / layer.scaling[name]


def extra_ranks(model: Model, name: str, module: str) -> tuple[Tensor, Tensor]:
    """What ``set_extra_ranks`` has set, as it takes it: (ranks, inputs) and (outputs, ranks), with no rank by
    default."""
    own, layer = model.network.peft_config[name].r, model.network.get_base_model().get_submodule(module)
    a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return a[own:].clone(), b[:, own:] * layer.scaling[name]


def remove_extra_ranks(model: Model, name: str, module: str) -> None:
    """Undo ``set_extra_ranks``: the weights are bit for bit what they were before it."""
    _set_rank(model, name, module, model.network.peft_config[name].r)


def _set_rank(model: Model, name: str, module: str, rank: int) -> Any:
    """Give an adapter ``rank`` ranks at one linear map, the first of them as they are and new ones zero, at the same
    scale; returns the map's LoRA layer."""
    layer, config = model.network.get_base_model().get_submodule(module), model.network.peft_config[name]
    if layer.r[name] == rank:
        return layer
    for factor, dimension in ((layer.lora_A[name], 0), (layer.lora_B[name], 1)):
        old = factor.weight.detach()
        kept = old.narrow(dimension, 0, min(rank, old.shape[dimension]))
        shape = list(old.shape)
        shape[dimension] = rank - kept.shape[dimension]
        grown = torch.cat([kept, old.new_zeros(shape)], dimension).contiguous()
        factor.weight = nn.Parameter(grown, requires_grad=factor.weight.requires_grad)
    layer.r[name], layer.lora_alpha[name] = rank, layer.scaling[name] * rank
    for pattern, value in ((config.rank_pattern, rank), (config.alpha_pattern, layer.lora_alpha[name])):
        pattern.pop(module, None)
        if rank != config.r:
            pattern[module] = value
    return layer


def save_adapter(
    model: Model, adapter: str, folder: Path, also: Callable[[Path], object] = lambda partial: None
) -> None:
    """Write an adapter as peft reads it, on those decoder layers to which it adds something, with the tokenizer and
    with what ``also`` writes: a folder that is whole or absent."""
    weights, config = adapter_weights(model, adapter), copy.deepcopy(model.network.peft_config[adapter])
    layer_of = {key: int(LAYER.findall(key)[-1]) for key in weights}
    used = {layer_of[key] for key, weight in weights.items() if ".lora_B." in key and weight.any()}
    if used and used != set(layer_of.values()):  # what does nothing takes room, and time wherever it is loaded
        weights = {key: weight for key, weight in weights.items() if layer_of[key] in used}
        config.layers_to_transform = sorted(used)

    def write(partial: Path) -> None:
        save_tensors(weights, partial / WEIGHTS)
        config.save_pretrained(partial)
        model.tokenizer.save_pretrained(partial)
        also(partial)

    write_whole_folder(folder, write)
