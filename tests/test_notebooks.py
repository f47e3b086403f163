"""Every notebook is a test: it must run from top to bottom. One process, so that torch is imported once."""
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook


@pytest.mark.parametrize('path', sorted((Path(__file__).parent.parent/'nbs').glob('*.ipynb')), ids=lambda p: p.stem)
def test_notebook(path, request):
    skip = [f for f in get_config().tst_flags.split() if not (f in ('slow', 'cuda') and request.config.getoption(f'--{f}'))]
    passed, _ = run_notebook(path, skip_flags=skip)
    assert passed, f'{path.name} failed: the traceback is above'
