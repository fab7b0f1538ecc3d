"""Mistral 7B, aligned on one GPU with 12 GB of memory or more.

    python recipes/mistral_7b.py

It begins with the chat model that Mistral has aligned already. --from-base-model begins with the base model,
which learns to answer and to refuse here, as in the paper.
Both are copies of Mistral's repositories, whose licence holds for them.

Stage 1, contrastive refinement, pushes toxic and seemingly toxic prompts apart in the model's middle. A dial then sets
how much it refuses, as far as each prompt reads as toxic or not. A model that does not refuse by itself is taught to in
between, by stage 2, safety SFT. The stock model and DCR are measured on prompts that nothing was trained on or chosen
by. --help lists every setting.
"""

from pathlib import Path

from dcr_lite.run.launch import launch
from dcr_lite.settings import Settings

SETTINGS = Settings(
    model="unsloth/mistral-7b-instruct-v0.3",
    base_model="unsloth/mistral-7b-v0.3",  # a copy of mistralai/Mistral-7B-v0.3
    base_format="mistral",
    run=Path("runs/mistral_7b"),
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

    # What is not set is found: the layer L, learning rates, and whether the model refuses by itself.
    settings = steps.find_settings(run, model, data, settings)
    show_plan(plan(model, source, data, settings))

    # Stage 1: the adapter's last layers up to L learn to tell the two kinds of prompt apart. In a model that refuses by
    # itself half of what that changes stays.
    steps.refine(run, model, data, settings)

    # Stage 2, for one that does not: its layers above L learn to refuse.
    steps.teach_refusals(run, model, data, settings)

    # A baseline, if asked for: safety SFT of the stock model on all layers.
    steps.teach_refusals_alone(run, model, data, settings)

    # The dial: how much to refuse, chosen by development prompts.
    steps.set_dial(run, model, data, settings)

    # The models answer the held-out prompts.
    answers = steps.evaluate(run, model, data, settings)
    report = steps.write_up(run, model, source, data, settings, answers)
    show_end(report, run.path)


if __name__ == "__main__":
    launch(main, SETTINGS)
