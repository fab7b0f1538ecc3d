"""``--plan``: what a run takes on common cards, from the model's shape alone. Nothing is loaded."""

from dcr_lite.model import memory
from dcr_lite.model.memory import TITLES, needs
from dcr_lite.model.shapes import shape_of
from dcr_lite.settings import Settings

# Name, bytes: as sold. A desktop and other programs take a part of them.
CARDS = {
    "T4 (free Colab), 16 GB": 15.0e9,
    "RTX 4060, 8 GB": 8.4e9,
    "RTX 3060, 12 GB": 12.6e9,
    "RTX 4070, 12 GB": 12.6e9,
    "RTX 4060 Ti, 16 GB": 16.8e9,
    "RTX 3090 / 4090, 24 GB": 25.3e9,
    "RTX 5090, 32 GB": 34.0e9,
    "A100, 40 GB": 42.3e9,
    "A100 / H100, 80 GB": 85.0e9,
}
NO_BFLOAT16 = "T4"
DESKTOP = 0.5e9  # of a card is in use before a run begins


def show_cards(settings: Settings) -> None:
    """Print what the parts of a run take on common cards, from the model's shape alone: nothing is loaded."""
    from rich.console import Console
    from rich.table import Table

    shape, four_bit = shape_of(settings.model), settings.quantization != "none"
    value_bytes = 4 if settings.precision == "float32" else 2
    parts = needs(shape, settings, four_bit, value_bytes)
    weights = memory.weights(shape, four_bit, value_bytes)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("card", *(TITLES[need.name] for need in parts)):
        table.add_column(column, justify="left" if column == "card" else "right")
    in_float32 = settings.precision == "auto" and shape.exceeds_float16  # on a card without bfloat16
    for card, size in CARDS.items():
        cells = []
        for need in needs(shape, settings, four_bit, 4) if in_float32 and card.startswith(NO_BFLOAT16) else parts:
            n = need.units(size - DESKTOP)
            cells.append("does not fit" if n is None else f"{need.total(n) / 1e9:.1f} GB ({n:,})")
        table.add_row(card, *cells)
    console = Console(highlight=False, width=max(110, Console().width))
    how = "4-bit NF4" if four_bit else f"{8 * value_bytes} bits a weight"
    console.print(f"{settings.model}: {shape.parameters / 1e9:.2f} billion weights, {weights / 1e9:.1f} GB in {how}\n")
    console.print(table)
    console.print(
        "\nEstimated peak memory; in brackets the tokens of one pass (for the evaluation, the prompts answered\n"
        "together). A batch in several passes has the same gradients. Formula: dcr_lite/model/memory.py."
    )
