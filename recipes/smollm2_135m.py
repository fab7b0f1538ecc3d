"""SmolLM2-135M-Instruct, aligned in two stages on one GPU or on a CPU.

    python recipes/smollm2_135m.py            # or: make train

Stage 1, contrastive refinement, pushes toxic and seemingly toxic prompts apart in the middle of the model; stage 2,
safety SFT, teaches it to refuse. Beside it the stock model gets safety SFT alone, and all three are measured on
prompts that nothing was trained on or chosen by.
"""

from pathlib import Path

from dcr_lite.run.launch import launch
from dcr_lite.settings import Settings

SETTINGS = Settings(
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    run=Path("runs/smollm2_135m"),
    layer=15,  # half of the 30 layers: the lowest depth at which the two kinds can be told apart well
    temperature=0.5,  # at 0.2 and below a pair's own other side dominates the loss, and nothing is learnt
    margin=0.25,  # m of Circle, for --paper: the first that was tried, and not yet settled
    scale=16.0,  # gamma of Circle, likewise
    contrastive_batch=32,  # that of everything tried in docs/results.md; more takes longer by as much on a CPU
    contrastive_steps=160,  # twice through the 1,279 pairs; unseen pairs gain to the end
    contrastive_learning_rate=1e-3,  # twice as much took unseen pairs no further
    sft_epochs=1,
    sft_batch=8,  # many small steps: with 16 rows a step there are too few to learn refusing from so few rows
    sft_learning_rate=2e-3,  # twice stage 1's: with 1e-3 and 16 rows a step refusing was not learnt
    augmentations=110,  # all of the shipped ones: about as many as the refusals that they answer
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
