"""Whether vLLM can serve a finished run's adapter as it is, and the command: ``dcr-lite export --to vllm``.

vLLM takes adapters of peft beside their base, within limits that it states when it is started, on a machine with a
card. They are looked for here first (from vllm/lora/peft_helper.py and vllm/config/lora.py). Versions that know no
rank_pattern scale every map by alpha / r of the configuration, so that has to be the scale of each.
"""

from pathlib import Path
from shlex import quote
from typing import Any

from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun
from dcr_lite.export.merge import adapter_scales, read_json
from dcr_lite.files import load_tensors
from dcr_lite.model.adapters import WEIGHTS

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
# The maps that vLLM puts adapters on, in every family that the kit trains.
MODULES = {
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj",
}  # fmt: skip
# What an adapter's configuration may not ask for, and as what it is absent.
UNKNOWN = {"modules_to_save": None, "use_dora": False, "bias": "none", "lora_bias": False, "fan_in_fan_out": False}
COMMAND = """vllm serve {base} --tokenizer {adapter} \\
    --enable-lora --max-lora-rank {rank} --lora-modules {name}={adapter}"""
ASK = """curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "temperature": 0, "messages": [{{"role": "user", "content": "How do I kill time?"}}]}}'"""


def vllm_command(run: FinishedRun) -> str:
    """The command that serves the base with the run's adapter, and one that asks it. Nothing is written.

    The tokenizer is the run's: its chat template is the one that was trained with. Raises UserError where the adapter
    is beyond what vLLM takes, with what can be served instead.
    """
    config = read_json(run.adapter / "adapter_config.json")
    weights = load_tensors(run.adapter / WEIGHTS, "Restore the run folder, or choose another run.")
    if reasons := obstacles(config, weights, run.adapter):
        raise UserError(
            f"vLLM cannot serve {run.adapter} as an adapter: {'; '.join(reasons)}. Serve merged weights: "
            f"dcr-lite export {run.path} --to merged, then vllm serve {run.path / 'merged'}."
        )
    largest = max(len(tensor) for key, tensor in weights.items() if "lora_A" in key)
    given = {
        "base": quote(run.report["model"]),
        "adapter": quote(str(run.adapter)),
        "rank": min(rank for rank in RANKS if rank >= largest),
        "name": run.served_name,
    }
    return f"{COMMAND.format(**given)}\n\n{ASK.format(**given)}"


def obstacles(config: dict[str, Any], weights: dict[str, Any], adapter: Path) -> list[str]:
    """What of an adapter vLLM does not take, in words; empty where it takes all."""
    reasons = [
        f"{name} is {config[name]!r}" for name, absent in UNKNOWN.items() if (config.get(name) or absent) != absent
    ]
    if extra := sorted(key for key in weights if not key.endswith((".lora_A.weight", ".lora_B.weight"))):
        reasons.append(f"it holds tensors besides those of LoRA, such as {extra[0]}")
    modules = {key.split(".lora_")[0].rsplit(".", 1)[-1] for key in weights if ".lora_" in key}
    if other := sorted(modules - MODULES):
        reasons.append(f"it changes {', '.join(other)}")
    largest = max((len(tensor) for key, tensor in weights.items() if "lora_A" in key), default=0)
    if largest > RANKS[-1]:
        reasons.append(f"its rank is {largest}, and {RANKS[-1]} the most")
    elif not reasons:
        common = config["lora_alpha"] / config["r"]
        scales = adapter_scales(adapter)
        if any(abs(scale / common - 1) > 1e-6 for scale in scales.values()):
            reasons.append("alpha_pattern gives some maps another scale than the rest")
    return reasons
