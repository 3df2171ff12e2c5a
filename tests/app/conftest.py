"""Fixtures of the tests of the commands."""

import pytest
from hydra import initialize_config_dir

from worstcase.app import doors


@pytest.fixture
def hydra():
    """Within the test, Hydra composes the project's own configuration."""
    with initialize_config_dir(doors.CONF, version_base="1.3"):
        yield
