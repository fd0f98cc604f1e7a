"""Helpers of the adapters: weights in bloomref's axes, checks of what is installed and supported, versions."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from bloomref.config import BloomConfig
from bloomref.errors import BloomrefError, Unsupported
from bloomref.params import HF_PREFIX, Params
from bloomref.shapes import Array


class Failed(BloomrefError, RuntimeError):
    """An implementation broke down. The kit counts that as a failure, not as a reason to skip."""


def params_of(config: BloomConfig, weights: Mapping[str, Array]) -> Params:
    """Convert the weights that `Implementation.load` takes to bloomref's parameters.

    Raises:
        BadWeights: a key is missing or unknown, or an array has a wrong shape.
    """
    return Params.from_named(config, {key.removeprefix(HF_PREFIX): array for key, array in weights.items()})


def need(name: str, *packages: str, command: str) -> None:
    """Raise Unsupported, with the command that installs them, if packages are missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise Unsupported(f"{name}: {', '.join(missing)} not installed; pip install {command}")


def refuse(name: str, **asked: bool) -> None:
    """Raise Unsupported if a keyword argument is true; its name says what is not supported."""
    for feature, is_asked in asked.items():
        if is_asked:
            raise Unsupported(f"{name}: it does not support {feature.replace('_', ' ')}")


def versions_of(*distributions: str) -> dict[str, str]:
    """Versions of the installed distributions among the given ones."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
