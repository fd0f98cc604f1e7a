"""`bloomref presets`: list the models that can be loaded by name."""

import sys

from bloomref.cli.shared import Json, print_json


def command(json: Json = False) -> None:
    """List the built-in presets.

    Example: bloomref presets
    """
    from bloomref.presets.preset_registry import PRESETS

    if json:
        print_json({name: preset.summary() for name, preset in PRESETS.items()})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "preset", "parameters", "layers", "width", "heads", "source", box=None, header_style="bold", pad_edge=False
    )
    for column in table.columns[1:5]:
        column.justify = "right"
    for name, preset in PRESETS.items():
        sizes = (preset.config.num_layers, preset.config.hidden_dim, preset.config.num_heads)
        table.add_row(name, f"{preset.parameters:,}", *map(str, sizes), preset.source)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    licences = sorted({preset.licence for preset in PRESETS.values()})
    console.print(f"\nThe code is Apache-2.0; the weights, provided as is: {', '.join(licences)}.", highlight=False)
    console.print("Descriptions of the presets: bloomref presets --json", highlight=False)
