"""A model's configuration: as a folder has it, how long a row may be, which attention computes the decoder, and what
ends an answer."""

from pathlib import Path
from typing import Any

from dcr_lite.errors import UserError
from dcr_lite.files import load_json


def in_folder(folder: str | Path) -> dict[str, Any]:
    """What the config.json of a model's folder holds; an empty dict where there is none or it is damaged."""
    try:
        config = load_json(Path(folder) / "config.json")
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def of_decoder(config: Any) -> Any:
    """The configuration of the language model inside, of a model that reads pictures as well; else the same."""
    return config.get_text_config(decoder=True)


def longest_row(config: Any) -> int:
    """The longest row that a decoder was made for, in tokens.

    LongRoPE (Phi, Ding et al., arXiv 2402.13753) rotates a text by other angles once it is longer than in
    pretraining. Rows stay below that: in a batch the longest one would decide for all of them, and an answer that grew
    past it would read keys of both kinds.
    """
    longest = int(getattr(config, "max_position_embeddings", 2048))
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") == "longrope":
        return min(longest, int(rotary["original_max_position_embeddings"]))
    return longest


def plain_attention(config: Any) -> bool:
    """Whether packed attention computes a decoder's own: no softcapping, no window, nothing but attention."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = None if hasattr(config, "layer_types") else getattr(config, "sliding_window", None)
    seen_whole = window is None or window >= longest_row(config)
    return not softcapped(config) and kinds == {"full_attention"} and seen_whole


def softcapped(config: Any) -> bool:
    """Whether attention scores are squeezed by a tanh, as Gemma 2's are."""
    return getattr(config, "attn_logit_softcapping", None) is not None


def stated_ends(network: Any) -> list[int]:
    """The tokens that end an answer by the model's own generation settings."""
    stated = getattr(network.generation_config, "eos_token_id", None)
    return [token for token in (stated if isinstance(stated, list) else [stated]) if token is not None]


def set_up_tokenizer(tokenizer: Any, network: Any) -> None:
    """Let a tokenizer pad on the right, and one without a token for that with its end token, by default the first of
    ``stated_ends``. Raises UserError where there is none."""
    tokenizer.clean_up_tokenization_spaces = False  # it is ignored anyway, with a long warning
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = next(filter(None, map(tokenizer.convert_ids_to_tokens, stated_ends(network))), None)
    if tokenizer.eos_token is None:
        raise UserError(
            f"{tokenizer.name_or_path}: nothing says which token ends an answer. Name it as eos_token in "
            "tokenizer_config.json, or as eos_token_id in generation_config.json."
        )
    tokenizer.pad_token = tokenizer.eos_token
