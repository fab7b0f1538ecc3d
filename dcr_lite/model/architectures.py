"""Whether the kit reads a model as its library does.

The decoder is run in two halves and the output matrix by itself (``hidden_states``). A few architectures scale
embeddings or logits on the way (Granite, Cohere), which only their own forward pass does: without a word, stage 1 would
train on other states than the model has.
"""

import torch
from torch import Tensor

from dcr_lite.errors import UserError
from dcr_lite.model import configuration
from dcr_lite.model.hidden_states import depth, final_states, states_above, states_at_layer, vocabulary_logits
from dcr_lite.model.loading import Model

# Those that tests compare with the library's own forward pass, by model_type.
KNOWN = {
    "llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3", "phi3", "gemma2", "gemma3_text", "olmo3", "lfm2",
}  # fmt: skip
TEXT = "How do I kill time?"
CLOSE = 0.05  # of the logits' size; rounding of bfloat16 changes 0.01, a forgotten scale 1 and more


def require_known(model: Model, trains: bool) -> None:
    """Raises UserError where the logits of a short text are not those of the model's own forward pass; where it
    ``trains``, also not in two halves. Models that the tests know are not asked."""
    kind = configuration.of_decoder(model.network.config).model_type
    if kind in KNOWN:
        return
    row = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    with torch.no_grad(), model.compute():
        own = model.network(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0, -1].float()
        try:
            read = _logits(model, row, trains)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
            read = []
    if not read or any(float((one - own).norm()) > CLOSE * float(own.norm()) for one in read):
        raise UserError(
            f"models of type {kind} are not supported: they attend, or scale states or logits, in a way of their own. "
            "docs/families.md lists those that are."
        )


def _logits(model: Model, row: list[int], halves: bool) -> list[Tensor]:
    """Those of the token after a row of token ids, (vocabulary,), as the kit reads them: at once, and in two halves."""
    batch, network = model.batch([row]), model.network
    found = [final_states(network, batch, batch.last)]
    if halves:
        layer = depth(network) // 2
        states = states_at_layer(network, batch, layer).view(*batch.inputs["input_ids"].shape, -1)
        found.append(states_above(network, batch, states, layer, batch.last))
    return [vocabulary_logits(network, states)[0] for states in found]
