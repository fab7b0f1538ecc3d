"""The demo in a browser: opens a run, builds the page and serves it. --help answers before gradio is imported."""

from importlib.util import find_spec
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.names import with_name
from dcr_lite.settings import ChatFormat, Device

LOCAL = "127.0.0.1"


def main(
    run: Path | None = None, port: int | None = None, share: bool = False, device: Device = "auto",
    address: str = LOCAL, marks: Path | None = None, model: str | None = None, chat_format: ChatFormat = "own",
) -> None:  # fmt: skip
    """Serve the demo of a run folder: by default of the newest finished one under runs/, else of a stock model alone.
    model: in place of a run a model by its name or folder, shown alone. chat_format: that model's, if it brings none.

    port: of the local server; by default the first free one from 7860. share: also open a public link. address: that
    the server listens at; a Space's container has to be reached from outside. marks: the file that marks of answers go
    to; by default one beside the run, and none where others than this machine's users may open the page. For them there
    is no tab that mends either.
    Raises UserError where gradio is missing, for a folder without a finished run, for a model that cannot be opened or
    stands beside a run, for a place where no file of marks can be, and for a port that is in use.
    """
    if find_spec("gradio") is None:
        raise UserError("the demo needs gradio: pip install 'dcr-lite[demo]'")
    if marks is not None and marks.is_dir():
        raise UserError(f"--marks {marks}: a folder. Give a file in it.")
    if marks is not None and marks.parent.is_file():
        raise UserError(f"--marks {marks}: {marks.parent} is a file. Give a file in a folder.")
    from dcr_lite.demo.blocks import build, launch
    from dcr_lite.demo.mending import mending_of
    from dcr_lite.demo.scoring import newest_run, open_run
    from dcr_lite.demo.texts import STOPPED_WITH_DEMO
    from dcr_lite.model.compiled_code import keep_little_code

    keep_little_code()
    # A run is told by its name from those beside it, so one that is given as . needs it.
    run = Path(with_name(str(run))) if run else None if model else newest_run()
    opened = open_run(run, device, model, chat_format)
    opened.mended = run  # of a run that mended, DCR is its model: there is no other to open beside it
    mending = mending_of(run, marks, device, model, chat_format) if address == LOCAL and not share else None
    for name in opened.names:  # the first pass of each model takes seconds longer than all later ones
        opened.score(name, "Hello", tokens=2)
    print(opened.title, opened.note, sep="\n")
    if share:
        print("warning: --share opens a public link; whoever has it can use this machine through the demo.")
    page = build(opened, mending.marks if mending else marks, mending)
    try:
        launch(page, share, address, server_port=port)
    except (OSError, OverflowError):  # OverflowError: a number that is no port
        place = "no port from 7860 on is free" if port is None else f"port {port} is in use or not allowed"
        raise UserError(f"{place}. Choose another --port.") from None
    finally:
        if mending and mending.stop():
            print(STOPPED_WITH_DEMO)
