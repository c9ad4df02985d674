from pathlib import Path

import pytest

from tests.fixtures.colour_network import write_network


@pytest.fixture(scope="session")
def colour_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .xml of a network that answers colours, its .bin and .toml beside it. Not to be changed."""
    return write_network(tmp_path_factory.mktemp("colour")).with_suffix(".xml")
