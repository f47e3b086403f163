"""What no notebook can see of itself: imports on a bare machine, and the package as it is installed elsewhere."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
# what modules may import at their top; triton comes with torch
BARE = ('text2sign', 'numpy', 'torch', 'timm', 'safetensors', 'tqdm', 'cv2', 'fastcore', 'filelock', 'triton')
MODULES = sorted(path.stem for path in (HERE/'text2sign').glob('*.py') if not path.stem.startswith('_'))


@pytest.mark.quick
def test_imports_on_a_bare_machine():
    "An import hook simulates the bare machine: it refuses our modules anything else that is not Python's own."
    code = f'''
import sys, builtins
real = builtins.__import__
allowed = {BARE!r} + tuple(sys.stdlib_module_names)
def bare(name, globals=None, locals=None, fromlist=(), level=0):
    ours = (globals or {{}}).get("__name__", "").startswith("text2sign")
    if ours and not level and name.split(".")[0] not in allowed:
        raise ImportError(f"{{globals['__name__']}} imports {{name}}, which is not on a bare machine")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = bare
import importlib
for module in {MODULES!r}: importlib.import_module(f"text2sign.{{module}}")
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.quick
def test_version():
    import text2sign
    assert f'version = {text2sign.__version__}' in (HERE/'settings.ini').read_text()


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "A wheel of the tracked files, installed into a folder; gives a function that runs Python with it, elsewhere."
    source, target, elsewhere = (tmp_path_factory.mktemp(name) for name in ('source', 'target', 'elsewhere'))
    for name in ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(HERE/name, source)
    shutil.copytree(HERE/'text2sign', source/'text2sign', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(HERE/'checkpoints', source/'checkpoints', ignore=lambda folder, names: [
        name for name in names if (Path(folder)/name).is_dir()])
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    def call(*command):
        done = subprocess.run([*pip, *command], capture_output=True, text=True, cwd=source)
        assert done.returncode == 0, done.stderr[-2000:]
    call('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', str(source/'wheel'), '.')
    wheel = next((source/'wheel').glob('*.whl'))
    call('install', '--no-deps', '--no-index', '--target', str(target), str(wheel))

    def run(code, *arguments):
        env = os.environ | dict(PYTHONPATH=str(target), TEXT2SIGN_HOME=str(elsewhere/'home'))
        env.pop('IN_TEST', None)
        done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, cwd=elsewhere,
                              env=env)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        return done.stdout
    run.target, run.folder = target, elsewhere
    return run


COMMAND = 'import sys; from text2sign.cli import main; sys.exit(main())'


def test_wheel_is_what_runs(installed):
    package = installed.target/'text2sign'
    assert installed('import text2sign; print(text2sign.__file__)').strip() == str(package/'__init__.py')
    weights = {path.name for path in (package/'weights').glob('*.safetensors')}
    assert weights == {f'{name}.safetensors' for name in ('fs-all', 'fs-all-image', 'fs-ase', 'fs-ase-image',
                                                          'reader-conv', 'reader-points')}
    assert (installed.target/'bin'/'text2sign').exists()


def test_wheel_samples_and_renders(installed):
    "The shipped model is found; without --out a clip lands in outputs/ of the working directory."
    for arguments in (['sample', '--text', 'HI', '--steps', '2'], ['render', 'HI']):
        path = Path(installed(COMMAND, *arguments).strip())
        assert path.parent == installed.folder/'outputs' and path.stat().st_size > 1000


def test_wheel_checks(installed):
    assert 'FAIL' not in installed(COMMAND, 'check', 'fs-all')


def test_wheel_shows_the_panel(installed):
    "With the shipped model and its reader."
    said = installed('''
from text2sign.panel import Panel
p = Panel()
print(p.message.value, p.settings[0]["checkpoint"].label, p._reader("hand") is not None)''')
    assert said.split() == ['fs-all', '(hand,', '64', 'px)', 'True']


def test_wheel_trains(installed):
    "A run lands in checkpoints/ of the working directory, and can be sampled by its name."
    tiny = dict(run='mine', stage='both', pretrained='', size=32, width=48, depth=2, heads=2, words=40, max_letters=2,
                frames=9, image_steps=2, image_batch=8, steps=2, batch=2, score_words=0, device='cpu')
    pairs = [part for name, value in tiny.items() for part in ('-p', name, str(value))]
    installed(COMMAND, 'train', *pairs)
    assert (installed.folder/'checkpoints'/'mine'/'video.safetensors').exists()
    installed(COMMAND, 'sample', '--text', 'HI', '--steps', '1', '--checkpoint', 'mine', '--out', 'mine.gif')
    assert (installed.folder/'mine.gif').exists()
