"""`bloomref presets`: what can be loaded by name."""

from bloomref.cli.shared import Json, print_json


def command(json: Json = False) -> None:
    """List the built-in presets.

    Example: bloomref presets
    """
    from bloomref.presets.registry import PRESETS

    if json:
        print_json({name: preset.summary() for name, preset in PRESETS.items()})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("preset", "parameters", "source", "description", box=None, header_style="bold", pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    table.columns[1].justify = "right"
    for name, preset in PRESETS.items():
        table.add_row(name, f"{preset.parameters:,}", preset.source, preset.description)
    console = Console()
    console.print(table)
    licences = sorted({preset.licence for preset in PRESETS.values()})
    console.print(f"\nLicences of the weights: {'; '.join(licences)}. Provided as is; the code is Apache-2.0.")
