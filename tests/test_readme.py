"""README.md says what is so: its figures are those that runs wrote, its links lead somewhere, its lines work."""
import json
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick
HERE = Path(__file__).parent.parent
README = (HERE/'README.md').read_text()
sys.path.insert(0, str(HERE/'docs'))


def test_figures_and_rooms():
    import update_readme
    assert update_readme.updated(README) == README, 'run: python docs/update_readme.py'


def links(text): return re.findall(r'\]\(([^)#]+?)(?:#[^)]*)?\)', text)


@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'checkpoints/README.md'])
def test_links_of_pages(name):
    path = HERE/name
    gone = [link for link in links(path.read_text()) if '://' not in link and not (path.parent/link).exists()]
    assert not gone


def test_links_of_notebooks():
    for path in (HERE/'nbs').rglob('*.ipynb'):
        cells = json.loads(path.read_text())['cells']
        text = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
        here = [link for link in links(text) if re.fullmatch(r'[\w./-]+\.(ipynb|png|gif|md|json|yaml)', link)]
        gone = [link for link in here if not (path.parent/link).exists()]
        assert not gone, (path.name, gone)


def test_index_leads_to_every_room():
    "Once, in its table; and a word is typed, watched and read back in the first three cells of code."
    path = HERE/'nbs'/'index.ipynb'
    cells = [(cell['cell_type'], ''.join(cell['source'])) for cell in json.loads(path.read_text())['cells']]
    table, = [source for _, source in cells if source.startswith('## Where to go for what')]
    found = [p for p in path.parent.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    rooms = [str(p.relative_to(path.parent)) for p in found]
    assert sorted(links(table)) == sorted(set(rooms) - {'index.ipynb'})
    first = [source for kind, source in cells if kind == 'code'][:3]
    for source, part in zip(first, ('word = ', 'show(clip', 'read_letters(')): assert part in source
    assert [kind for kind, _ in cells[:4]] == ['markdown', 'code', 'code', 'code']


def test_lines_to_paste():
    "One line trains, one tests; each installs what it uses."
    lines = [line for line in README.splitlines() if line.startswith('python3 -m venv')]
    assert len(lines) == 2
    assert "pip install -e '.[notebook]'" in lines[0] and 'papermill nbs/05_train.ipynb' in lines[0]
    assert "pip install -e '.[dev]'" in lines[1] and lines[1].endswith('&& pytest')


def test_commands():
    "Every `text2sign ...` of the README parses."
    import shlex

    from text2sign.cli import make_parser
    calls = [shlex.split(line.split('#')[0])[1:] for line in README.splitlines() if line.startswith('text2sign ')]
    assert len(calls) >= 5
    for call in calls:
        if '--help' not in call: make_parser().parse_args(call)


def test_python():
    "The imports of the README's Python exist."
    for block in re.findall(r'```python\n(.*?)```', README, re.S):
        exec('\n'.join(line for line in block.splitlines() if line.startswith('from ')), {})


def test_the_picture_moves():
    from PIL import Image
    path = HERE/'nbs'/'images'/'generated.gif'
    assert Image.open(path).n_frames > 10 and path.stat().st_size < 400_000
    assert README.index('generated.gif') < README.index('\n## ')
