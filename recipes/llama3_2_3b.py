"""Llama 3.2 3B, aligned in two stages on one GPU with 8 GB of memory or more.

    python recipes/llama3_2_3b.py

It begins with the base model, which learns to answer and to refuse here, as in the paper: what comes out is then the
recipe's own doing. --from-chat-model begins with the chat model that Meta has aligned already.
Both are ungated copies of Meta's gated repositories, and its Llama 3.2 licence holds for them.

Stage 1, contrastive refinement, pushes toxic and seemingly toxic prompts apart in the middle of the model; stage 2,
safety SFT, teaches it to refuse. Beside it the stock model gets safety SFT alone, and all three are measured on
prompts that nothing was trained on or chosen by.
"""

from pathlib import Path

from dcr_lite.run.launch import launch
from dcr_lite.settings import Settings

SETTINGS = Settings(
    model="unsloth/Llama-3.2-3B",  # an ungated copy of meta-llama/Llama-3.2-3B
    chat_model="unsloth/Llama-3.2-3B-Instruct",
    chat_format="llama3",
    run=Path("runs/llama3_2_3b"),
    layer=14,  # half of the 28 layers: on SmolLM2 the lowest depth at which the two kinds can be told apart well
    temperature=0.5,  # as on SmolLM2: at 0.2 and below a pair's own other side dominates the loss
    margin=0.25,  # m of Circle, for --paper: the value tried on SmolLM2
    scale=16.0,  # gamma of Circle, likewise
    contrastive_batch=64,  # more negatives than SmolLM2's 32; the batch goes through in parts
    contrastive_steps=80,  # once through 2,200 pairs and a little more; kept is what separates unseen pairs best
    contrastive_learning_rate=3e-4,  # width 3072, between SmolLM2's 1e-3 at 576 and QLoRA's 2e-4 at 4096
    data="full",  # the paper's 20,000 instructions and 1,000 refusals; --data shipped trains on those of the kit
    sft_epochs=1,  # on SmolLM2 many rows once taught more than few rows twice
    sft_batch=8,  # many small steps, as there
    sft_learning_rate=3e-4,  # as in stage 1
)


def main(settings: Settings) -> None:
    # Heavy imports come after --help has answered.
    from dcr_lite.run import inputs, opening, steps
    from dcr_lite.run.long_rows import without_long_rows
    from dcr_lite.run.plan import plan
    from dcr_lite.run.run_folder import RunFolder
    from dcr_lite.run.terminal import show_end, show_plan

    # Checked before any work: the run folder, every row of the data, the memory, the model, the layer, lengths.
    run = RunFolder(settings)
    data = inputs.load_data(settings)
    show_plan(opening.will_it_fit(settings))
    model, source = opening.load_model(settings)
    data = without_long_rows(run, model, data, settings)
    show_plan(plan(model, source, data, settings))

    # Stage 1: the adapter's layers up to L learn to tell the two kinds of prompt apart.
    steps.refine(run, model, data, settings)

    # Stage 2: its layers above L learn to refuse.
    steps.teach_refusals(run, model, data, settings)

    # The baseline: safety SFT of the stock model on all layers.
    steps.teach_refusals_alone(run, model, data, settings)

    # Three models answer the held-out prompts.
    answers = steps.evaluate(run, model, data, settings)
    report = steps.write_up(run, model, source, data, settings, answers)
    show_end(report, run.path)


if __name__ == "__main__":
    launch(main, SETTINGS)
