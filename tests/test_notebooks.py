"""Every notebook is a test: it must run from top to bottom. One process, so that torch is imported once."""
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook

NBS = Path(__file__).parent.parent/'nbs'
NOTEBOOKS = sorted(path for path in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
QUICK = ('00_core', '00a_clips', '00j_words', '01_dit', '02_checkpoint', '04_diffusion', '05f_settings', '06a_export')


def case(path):
    name = str(path.relative_to(NBS).with_suffix(''))
    return pytest.param(path, id=name, marks=pytest.mark.quick if name in QUICK else ())


def run_alone(path, skip):
    """In a process of its own: a notebook that defines an operator of PyTorch again takes it away from the module
    that has it, and a call of that module's operator would then crash the process."""
    code = ('import sys; from pathlib import Path; from nbdev.test import test_nb; '
            f'sys.exit(not test_nb(Path({str(path)!r}), skip_flags={skip!r})[0])')
    return subprocess.run([sys.executable, '-c', code]).returncode == 0


@pytest.mark.parametrize('path', [case(path) for path in NOTEBOOKS])
def test_notebook(path, request):
    wanted = [flag for flag in ('slow', 'cuda') if request.config.getoption(f'--{flag}')]
    skip = [flag for flag in get_config().tst_flags.split() if flag not in wanted]
    passed = run_alone(path, skip) if '@custom_op' in path.read_text() else run_notebook(path, skip_flags=skip)[0]
    assert passed, f'{path.name} failed: the traceback is above'
