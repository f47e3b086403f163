"""What keeps the house livable: which room may import which, how long things may be, what the package never does."""
import ast
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

pytestmark = pytest.mark.quick
HERE = Path(__file__).parent.parent
NBS, PACKAGE = HERE/'nbs', HERE/'text2sign'
NOTEBOOKS = sorted(path for path in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
TRAINING = {'batches', 'trainer', 'fsdp', 'speed', 'processes', 'monitor', 'preflight', 'settings', 'defaults',
            'checks', 'runs', 'prepare', 'train'}
RENDERER = {'mannequin', 'lexicon', 'cv2'}


def cells(path):
    return [(cell['cell_type'], ''.join(cell['source'])) for cell in json.loads(path.read_text())['cells']]


def exported_to(path):
    "The module that a notebook makes, '' for none."
    lines = [line for _, source in cells(path) for line in source.splitlines() if line.startswith('#| default_exp ')]
    return lines[0].split()[-1] if lines else ''


ROOMS = {exported_to(path): path.stem for path in NOTEBOOKS if exported_to(path)}           # module -> notebook
TREES = {module: ast.parse((PACKAGE/f'{module}.py').read_text()) for module in ROOMS}


def imported(nodes):
    "The modules of this package, and others by their first name, that some statements import."
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import): found |= {alias.name.split('.')[0] for alias in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        name = (node.module or '').removeprefix('text2sign.')
        if node.level or node.module.startswith('text2sign'):
            found |= {alias.name for alias in node.names} if name in ('', 'text2sign') else {name}
        else: found.add(name.split('.')[0])
    return found


def at_top(module): return imported(TREES[module].body) & set(ROOMS)
def anywhere(module): return imported(ast.walk(TREES[module])) & set(ROOMS)


def test_every_module_has_a_room():
    assert {path.stem for path in PACKAGE.glob('*.py')} == set(ROOMS) | {'__init__', '_modidx'}


@pytest.mark.parametrize('module', ROOMS)
def test_imports_come_from_rooms_above(module):
    "Notebooks are numbered; a module imports at its top from lower numbers only. So the map of imports has no circle."
    assert not {other for other in at_top(module) if ROOMS[other] >= ROOMS[module]}


def reached(module):
    "All rooms that importing one brings in."
    seen, todo = set(), {module}
    while todo:
        seen |= todo
        todo = set().union(*map(at_top, todo)) - seen
    return seen


@pytest.mark.parametrize('module', [m for m in ROOMS if ROOMS[m] < '05' or ROOMS[m][:2] in ('06', '07', '08')])
def test_data_and_sampling_import_no_training(module):
    assert not reached(module) & TRAINING
    if not ROOMS[module].startswith('07'): assert not anywhere(module) & TRAINING


def test_no_private_names_across_rooms():
    "Parts of one room (one number) may share helpers."
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.level or node.module not in ROOMS: continue
            if ROOMS[module][:2] == ROOMS[node.module][:2]: continue
            assert not [alias.name for alias in node.names if alias.name.startswith('_')], (module, node.module)


def test_what_runs_imports_what_it_needs():
    "Loading the shipped model brings in no renderer; sampling from it brings in no room of training."
    code = f'''
import sys
def loaded(): return {{name.removeprefix("text2sign.") for name in sys.modules}}
from text2sign.checkpoint import load_model
model = load_model("fs-ase")
assert not loaded() & {RENDERER}, loaded()
from text2sign.sample import generate
generate(model, ["A"], steps=1)
import text2sign.videos
assert not loaded() & {TRAINING}, loaded()
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.parametrize('module', ROOMS)
def test_no_magic(module):
    "No globals(), no notebook that is executed or parsed, no silent failure."
    calls = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [node for node in calls if node.func.id in ('globals', 'exec', 'eval')]
    assert not imported(ast.walk(TREES[module])) & {'papermill', 'nbformat', 'nbclient', 'nbconvert', 'cloudpickle'}
    for node in ast.walk(TREES[module]):
        silent = isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body)
        if not silent: continue
        assert node.type and getattr(node.type, 'id', '') not in ('Exception', 'BaseException'), node.lineno


@pytest.mark.parametrize('module', ROOMS)
def test_no_module_is_long(module):
    assert len((PACKAGE/f'{module}.py').read_text().splitlines()) <= 450


def test_fit_is_a_page():
    fit = next(node for node in ast.walk(TREES['train']) if isinstance(node, ast.FunctionDef) and node.name == 'fit')
    start = fit.body[1].lineno if isinstance(fit.body[0], ast.Expr) else fit.body[0].lineno
    assert fit.end_lineno - start < 40


def test_exported_cells_are_short():
    "90 % have at most 20 lines (the longest are kernels, which have no parts)."
    lines = sorted(len(source.splitlines()) - 1
                   for path in NOTEBOOKS for _, source in cells(path) if source.startswith('#| export'))
    assert lines[int(.9*len(lines))] <= 20


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_form_of_notebooks(path):
    "A title, what it is in one sentence, no empty cell; small enough to open at once."
    kind, first = cells(path)[0]
    lines = [line for line in first.splitlines() if line]
    assert kind == 'markdown' and lines[0].startswith('# ')
    if exported_to(path): assert lines[1].startswith('> ') and len(lines[1]) <= 112
    assert path.stat().st_size < 500_000
    assert not [source for kind, source in cells(path) if not source.strip()]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_something_to_see_at_once(path):
    "An output, a picture or a table within the first three cells; what is imported and hidden does not count."
    shown = []
    for cell in json.loads(path.read_text())['cells']:
        source = ''.join(cell['source'])
        code = '\n'.join(line for line in source.splitlines() if not line.startswith('#|')).strip()
        shown.append(bool(cell.get('outputs') or '![' in source or '|---' in source))
        if not shown[-1] and cell['cell_type'] == 'code' and (
                not code or code.startswith(('import ', 'from ')) or source.startswith('#| hide')): shown.pop()
    assert any(shown[:3])


def test_linter():
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--output-format', 'concise', '.'],
                          capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize('path', sorted((HERE/'checkpoints').glob('*.yaml')), ids=lambda path: path.stem)
def test_settings_that_ship(path):
    "Each file names settings that exist, of values that a training can start with."
    from text2sign.checks import check_settings
    from text2sign.settings import Settings
    with patch('text2sign.core.available_memory', lambda: None), \
         patch('text2sign.settings.available_memory', lambda: None):        # on a machine that is large enough
        check_settings(Settings.from_yaml(path))
