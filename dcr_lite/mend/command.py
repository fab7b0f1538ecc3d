"""A chat model that refuses what it should answer, mended with the prompts that its user names.

    dcr-lite mend --model NAME_OR_FOLDER --answer refused.txt --refuse must_refuse.txt

A run as that of a recipe, with two more steps: before stage 1 the model answers the prompts as it is, and they are
looked at and joined to the pairs; at the end they are answered again.
"""

from dcr_lite.mend.settings import MendSettings

ABOUT = """Mend a chat model that refuses what it should answer: it learns from the prompts that you name, and is
meant to go on refusing what it refuses today. Your prompts are looked at first; where it refuses 20 of them or more,
about half are kept to see whether it answers them afterwards. docs/mending.md has more."""


def main(settings: MendSettings) -> None:
    # Heavy imports come after --help has answered.
    from dcr_lite.mend import prompts
    from dcr_lite.mend import steps as mending
    from dcr_lite.mend.reader import Reader, alone
    from dcr_lite.run import inputs, opening, steps
    from dcr_lite.run.joined import has_joined
    from dcr_lite.run.long_rows import without_long_rows
    from dcr_lite.run.plan import plan
    from dcr_lite.run.report import plain
    from dcr_lite.run.run_folder import RunFolder
    from dcr_lite.run.terminal import show_line, show_plan

    # Checked before any work, as in a recipe, and the user's prompts with it.
    run = RunFolder(settings)
    mending.require_chat_model(settings)
    wishes = prompts.asked(settings)
    data = inputs.load_data(settings)
    show_plan(opening.will_it_fit(settings))
    model, source = opening.load_model(settings)
    data = without_long_rows(run, model, data, settings)
    mending.require_short(run, model, settings, wishes)

    settings = steps.find_settings(run, model, data, settings)
    show_plan(plan(model, source, data, settings))

    # The user's prompts: what the model says today, and what is to be known of them before anything trains.
    reader = Reader(model, alone(data).training, settings)
    check = mending.look(run, reader, data, settings, wishes)
    if settings.check:
        so_far = "This run has begun to train" if has_joined(run.path) else "Nothing has been trained"
        show_line(f"{so_far}. Go on with --resume in place of --check.")
        return run.leave()

    # They join the pairs: to be answered on the seemingly toxic side, beside the toxic prompts nearest to them.
    wishes, data = mending.join(run, reader, data, settings, wishes, check)

    # As in a recipe: stage 1, stage 2 where the model needs it, the dial, and the answers to held-out prompts.
    steps.refine(run, model, data, settings)
    steps.teach_refusals(run, model, data, settings)
    steps.teach_refusals_alone(run, model, data, settings)
    steps.set_dial(run, model, data, settings)
    answers = steps.evaluate(run, model, data, settings)

    # The user's prompts once more, and whether it is still as safe.
    verdict = mending.measure(run, model, settings, wishes, check, answers)
    report = steps.write_up(run, model, source, data, settings, answers, note=f"**{plain(verdict)}**")
    return mending.show_outcome(run, report)
