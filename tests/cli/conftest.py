"""A recorded dataset and a toy bundle for the commands to work on."""

from __future__ import annotations

from pathlib import Path

import pytest

import fakes
from cli.small_dataset import recorded
from sarm2_rollouts.lerobot_writer import write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes, pictures kept as they are."""
    root = tmp_path_factory.mktemp("dataset") / "two"
    write_dataset([recorded(0), recorded(1)], root, storage="image")
    return root


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained toy bundle."""
    return fakes.make_bundle(tmp_path_factory.mktemp("bundle"))
