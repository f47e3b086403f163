"""`pytest --slow` and `pytest --cuda` also run the notebook cells flagged `#| slow` (minutes, gigabytes) and `#| cuda` (a GPU)."""
import os

import pytest
import torch

if not torch.cuda.is_available(): os.environ.setdefault('TRITON_INTERPRET', '1')     # kernels are tested in Triton's interpreter; it asks once, when it is imported


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also run cells flagged slow: minutes, and up to 8 GB of memory')
    parser.addoption('--cuda', action='store_true', help='also run cells flagged cuda: need a GPU')


@pytest.fixture(autouse=True)
def threads():
    "What a notebook sets for itself must not slow down, or speed up, the next one."
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
