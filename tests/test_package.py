"""What no notebook can see of itself: the package's imports on a bare machine, and that no secret dependency crept in."""
import subprocess, sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
BARE = ('numpy', 'torch', 'timm', 'safetensors', 'tqdm', 'cv2', 'fastcore')       # and what these need themselves
FORBIDDEN = ('pose_format', 'spoken_to_signed', 'diffusers', 'plotly', 'matplotlib', 'mediapy', 'ipywidgets', 'papermill', 'pandas', 'PIL.Image', 'accelerate', 'tensorboard', 'names', 'wonderwords', 'IPython')


@pytest.mark.parametrize('module', ['corpus', 'dit', 'surgery', 'finite', 'diffusion', 'train', 'sample'])
def test_imports_on_a_bare_machine(module):
    "An import hook plays the bare machine: asking for anything else, from our own modules, is an error."
    code = f'''
import sys, builtins
real = builtins.__import__
def bare(name, g=None, *a, **k):
    if (g or {{}}).get('__name__', '').startswith('text2sign') and name.split('.')[0] in {FORBIDDEN!r}: raise ImportError(name + ' is not on a bare machine')
    return real(name, g, *a, **k)
builtins.__import__ = bare
import text2sign.{module}
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_version():
    import text2sign
    assert f'version = {text2sign.__version__}' in (HERE/'settings.ini').read_text()
