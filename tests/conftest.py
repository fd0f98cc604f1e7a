"""Executes the shape annotations of bloomref in every test, and adds `--network` and `--require-backend`."""

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# The modules whose arrays have named axes. Front doors are left out: they must refuse wrong types themselves.
SHAPED = ["bloomref.alibi", "bloomref.params", "bloomref.reference", "bloomref.runtime.engine"]
install_import_hook(SHAPED, "beartype.beartype")

settings.register_profile("bloomref", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("bloomref")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--network", action="store_true", help="also run the tests that load real checkpoints from the hub"
    )
    parser.addoption(
        "--require-backend", action="append", default=[], help="fail where this backend is not available, do not skip"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--network"):
        return
    for item in items:
        if item.get_closest_marker("network"):  # not `in item.keywords`, which holds folder names too
            item.add_marker(pytest.mark.skip(reason="loads real checkpoints; run with --network"))
