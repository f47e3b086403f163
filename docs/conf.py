"""The documentation site: the notebooks with the outputs they are stored with.

    sphinx-build -W --keep-going -c docs nbs _docs
"""
import json
import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent.parent
sys.path.insert(0, str(HERE/'docs'))
ini = ConfigParser(delimiters=['='])
ini.read(HERE/'settings.ini', encoding='utf-8')

project = ini['DEFAULT']['lib_name']
release = ini['DEFAULT']['version']
author = ini['DEFAULT']['author']
copyright = ini['DEFAULT']['copyright']

extensions = ['myst_nb']
exclude_patterns = ['**.ipynb_checkpoints', 'experiments/*.json']
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
myst_heading_slug_func = 'anchors.slug'
suppress_warnings = [
    'mystnb.unknown_mime_type',     # widgets and plotly figures have no form on paper
    'myst.header',                  # notebooks jump a level where it reads better
]
html_theme = 'alabaster'
html_theme_options = dict(page_width='1100px', sidebar_width='250px')
html_show_sphinx = False
html_copy_source = False


def add_contents(app, docname, source):
    "The index lists all notebooks; its own notebook is free of the directive for it."
    if docname != 'index': return
    notebook = json.loads(source[0])
    nbs = HERE/'nbs'
    for title, pattern in (('Rooms', '[0-9]*.ipynb'), ('Experiments', 'experiments/*.ipynb')):
        names = [str(path.relative_to(nbs).with_suffix('')) for path in sorted(nbs.glob(pattern))]
        text = '\n'.join(['```{toctree}', ':hidden:', f':caption: {title}', ':maxdepth: 1', '', *names, '```'])
        notebook['cells'].append(dict(cell_type='markdown', id=f'contents-{title}', metadata={}, source=text))
    source[0] = json.dumps(notebook)


def setup(app): app.connect('source-read', add_contents)
