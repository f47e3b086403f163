"""`pytest -m quick` is for between two edits; `pytest --slow` and `pytest --cuda` run more than plain `pytest` does."""
import os

if 'PYTEST_XDIST_WORKER' in os.environ: os.environ.setdefault('OMP_NUM_THREADS', '1')   # each worker has a core

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')      # kernels run in Triton's interpreter, which is chosen at import


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also what needs minutes, and up to 8 GB of memory')
    parser.addoption('--cuda', action='store_true', help='also what needs a GPU')


def pytest_configure(config):
    config.addinivalue_line('markers', 'quick: all of them together take less than two minutes')
    config.addinivalue_line('markers', 'slow: only under --slow or --cuda')
    config.addinivalue_line('markers', 'cuda: only under --cuda')
    if config.getoption('--slow'): os.environ['TEXT2SIGN_SLOW'] = '1'      # what cells flagged slow look at


def pytest_collection_modifyitems(config, items):
    slow, cuda = config.getoption('--slow'), config.getoption('--cuda')
    for item in items:
        if 'slow' in item.keywords and not (slow or cuda):
            item.add_marker(pytest.mark.skip(reason='takes minutes: pytest --slow, or --cuda'))
        if 'cuda' in item.keywords and not cuda:
            item.add_marker(pytest.mark.skip(reason='needs a GPU: pytest --cuda'))


@pytest.fixture(autouse=True)
def threads():
    "What a notebook sets for itself must not slow down, or speed up, the next one."
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
