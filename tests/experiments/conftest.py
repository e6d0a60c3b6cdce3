"""For the studies: one thread, and a second pair of models for the grid's smallest preset."""

from dataclasses import replace

import pytest
import torch

from alignpro_mini.experiments import grid
from alignpro_mini.lab.config import ShapeConfig


@pytest.fixture(autouse=True, scope="package")
def small():
    """Another order of summation is another rounding, and the grid's second models are as small as the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shape = ShapeConfig(d_model=32, n_layers=1, n_heads=2)
    grid.SECOND["micro"] = (replace(shape, d_model=16), replace(shape, d_model=48))
    yield
    del grid.SECOND["micro"]
    torch.set_num_threads(threads)
