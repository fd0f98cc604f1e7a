"""What the adapters share: the weights in bloomref's axes, and the word about a package that is not there."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from bloomref.config import BloomConfig
from bloomref.errors import BloomrefError, Unsupported
from bloomref.formats import hf
from bloomref.params import Params
from bloomref.shapes import Array


class Failed(BloomrefError, RuntimeError):
    """An implementation broke down over a question that it should have answered: no reason to skip, but a failure."""


def params_of(config: BloomConfig, weights: Mapping[str, Array]) -> Params:
    """The weights that `Implementation.load` gets, in the axes of bloomref's table.

    Raises:
        BadWeights: naming the first key that is missing, unknown, or of a wrong shape.
    """
    return Params.from_named(config, {key.removeprefix(hf.PREFIX): array for key, array in weights.items()})


def need(name: str, *packages: str, command: str) -> None:
    """Raises Unsupported, with the command that installs what is missing, unless all `packages` can be imported."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise Unsupported(f"{name}: {', '.join(missing)} not installed; pip install {command}")


def refuse(name: str, **asked: bool) -> None:
    """Raises Unsupported, naming the first of the keyword arguments that is true."""
    for what, wanted in asked.items():
        if wanted:
            raise Unsupported(f"{name}: it cannot do {what.replace('_', ' ')}")


def versions_of(*distributions: str) -> dict[str, str]:
    """The installed versions; a distribution that is not there is left out."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
