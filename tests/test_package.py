"""What no notebook can see of itself: the package's imports on a bare machine, and that no secret dependency crept in."""
import subprocess, sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
BARE = ('text2sign', 'numpy', 'torch', 'timm', 'safetensors', 'tqdm', 'cv2', 'fastcore', 'filelock', 'triton')      # what modules may import at their top; triton comes with torch


@pytest.mark.parametrize('module', ['clips', 'lexicon', 'mannequin', 'words', 'dit', 'surgery', 'finite', 'diffusion', 'train', 'sample'])
def test_imports_on_a_bare_machine(module):
    "An import hook simulates the bare machine: our own modules asking for anything but these and Python's own is an error."
    code = f'''
import sys, builtins
real = builtins.__import__
def bare(name, globals=None, locals=None, fromlist=(), level=0):
    if (globals or {{}}).get('__name__', '').startswith('text2sign') and not level and name.split('.')[0] not in {BARE!r} + tuple(sys.stdlib_module_names): raise ImportError(name + ' is not on a bare machine')
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = bare
import text2sign.{module}
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_version():
    import text2sign
    assert f'version = {text2sign.__version__}' in (HERE/'settings.ini').read_text()
