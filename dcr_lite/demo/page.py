"""The demo in a browser: opens a run, builds the page and serves it. --help answers before gradio is imported."""

from importlib.util import find_spec
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.settings import Device


def main(
    run: Path | None = None, port: int | None = None, share: bool = False, device: Device = "auto",
    address: str = "127.0.0.1",
) -> None:  # fmt: skip
    """Serve the demo of a run folder: by default of the newest finished one under runs/, else of the stock model alone.

    port: of the local server; by default the first free one from 7860. share: also open a public link. address: that
    the server listens at; a Space's container has to be reached from outside.
    Raises UserError where gradio is missing, for a folder without a finished run, and for a port that is in use.
    """
    if find_spec("gradio") is None:
        raise UserError("the demo needs gradio: pip install 'dcr-lite[demo]'")
    from dcr_lite.demo.blocks import build, launch
    from dcr_lite.demo.scoring import open_run

    opened = open_run(run, device)
    for name in opened.names:  # the first pass of each model takes seconds longer than all later ones
        opened.score(name, "Hello", tokens=2)
    print(opened.title, opened.note, sep="\n")
    if share:
        print("warning: --share opens a public link; whoever has it can use this machine through the demo.")
    try:
        launch(build(opened), share, address, server_port=port)
    except (OSError, OverflowError):  # OverflowError: a number that is no port
        place = "no port from 7860 on is free" if port is None else f"port {port} is in use or not allowed"
        raise UserError(f"{place}. Choose another --port.") from None
