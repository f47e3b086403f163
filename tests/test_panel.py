"""The panel as a new user meets it: JupyterLab in headless Chromium. A word is typed, a button clicked, a video plays.

Leaves a screenshot in outputs/panel.png. Skipped where there is no Chromium."""
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
QUIET = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']
FOLDERS = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime',
               JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces', IPYTHONDIR='ipython')
CELL = 'from text2sign.panel import panel\npanel()'
SLOW = """# a model of long texts with random weights, of which every call takes a while
import time
import torch
from text2sign.panel import panel
from text2sign.video import VideoDiT

class Slow(VideoDiT):
    def forward(self, *args, **kwargs):
        time.sleep(.2)
        return super().forward(*args, **kwargs)

units = (': ', *(f'ase:{letter}' for letter in 'ABCDEFGH'))
model = Slow(size=32, patch=8, channels=3, width=48, depth=1, heads=2, classes=9, learn_sigma=False,
             text_position='place', vocabulary=units).eval()
about = dict(objective='flow', frames=12, alphabet=units, crop='hand', steps=2, guidance=1., sampler='euler')
for name, value in about.items(): setattr(model.config, name, value)
panel(model)"""
COUNTING = """() => {             // how many frames are on the page, whenever that changes
    window.counts = [0]
    new MutationObserver(() => {
        const count = document.querySelectorAll('.frames > div').length
        if (count != counts.at(-1)) counts.push(count)
    }).observe(document.body, {childList: true, subtree: true})
}"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here: apt-get install chromium')


def write_notebook(path, source):
    cell = dict(cell_type='code', id='a', metadata={}, execution_count=None, outputs=[], source=source)
    kernel = dict(name='python3', display_name='python3', language='python')
    path.parent.mkdir()
    path.write_text(json.dumps(dict(cells=[cell], nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel))))


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def wait_for(address, server, log):
    for _ in range(120):
        assert server.poll() is None, log.read_text()[-2000:]
        try: return urllib.request.urlopen(address, timeout=5).close()
        except OSError: time.sleep(.5)
    raise TimeoutError(log.read_text()[-2000:])


@pytest.fixture
def lab(tmp_path, request):
    "JupyterLab with nothing of this machine's own configuration; gives the notebook's address."
    home, token, port = tmp_path/'jupyter', secrets.token_hex(16), free_port()
    news = home/'settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')
    write_notebook(tmp_path/'notebooks'/'mine.ipynb', getattr(request, 'param', CELL))
    paths = f'{HERE}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    env = os.environ | {name: str(home/folder) for name, folder in FOLDERS.items()} | dict(PYTHONPATH=paths)
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
               '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}',
               f'--ServerApp.root_dir={tmp_path/"notebooks"}']
    log = tmp_path/'lab.log'
    with open(log, 'w') as file: server = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    try:
        wait_for(f'http://127.0.0.1:{port}/api?token={token}', server, log)
        yield f'http://127.0.0.1:{port}/lab/tree/mine.ipynb?token={token}&reset'
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def page(lab, tmp_path):
    "The notebook in a browser, its only cell run."
    from playwright.sync_api import expect, sync_playwright
    with sync_playwright() as p:
        context = p.chromium.launch_persistent_context(str(tmp_path/'profile'), executable_path=CHROMIUM, args=QUIET,
                                                       viewport=dict(width=1280, height=1000))
        page = context.new_page()
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.goto(lab)
        page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_text('Run All Cells', exact=True).click()
        yield page
        context.close()


class User:
    "Hands on the panel."
    def __init__(self, page): self.page = page

    def field(self, name, i=0):
        return self.page.locator(f'.widget-inline-hbox:has(.widget-label:text-is("{name}")) input').nth(i)

    def button(self, name): return self.page.get_by_role('button', name=name, exact=True)

    def type(self, name, value, i=0):
        self.field(name, i).fill(str(value))
        self.field(name, i).press('Tab')

    def keys(self, text):
        "One after the other, as a person types; nothing is clicked."
        self.field('Text').fill('')
        self.field('Text').press_sequentially(text, delay=80)

    def run(self, texts, steps, seen):
        "Type, click, wait for a line."
        from playwright.sync_api import expect
        for i, text in enumerate(texts):
            self.type('Text', text, i)
            self.type('Steps', steps, i)
        self.button('Generate').click()
        expect(self.page.get_by_text(seen)).to_be_visible()


def test_panel(page):
    from playwright.sync_api import expect
    user, videos = User(page), page.locator('.jp-OutputArea video')
    typing = page.get_by_label('while typing')
    typing.uncheck()

    # a word, a click, a playing video, letters under its frames
    user.run(['LAY'], 4, 'done in')
    expect(videos).to_have_count(1)
    page.wait_for_function('v => v.readyState >= 2 && v.currentTime > 0', arg=videos.element_handle())
    now = videos.evaluate('v => v.currentTime')
    page.wait_for_function('([v, t]) => v.currentTime != t', arg=[videos.element_handle(), now])
    expect(page.get_by_text('The reader sees')).to_be_visible()
    expect(page.locator('.frames > div')).to_have_count(14)                     # 5*3-1

    # the slider
    expect(page.get_by_text('after step 4 of 4')).to_be_visible()
    page.locator('.noUi-handle').press('ArrowLeft')
    expect(page.get_by_text('after step 3 of 4')).to_be_visible()

    # while it runs: a second click has no button to hit, the slider still moves, Stop stops
    user.run(['LAY'], 2000, re.compile(r'step \d+ of 2000'))
    expect(user.button('Generating')).to_be_disabled()
    page.locator('.noUi-handle').press('ArrowLeft')
    expect(page.get_by_text('after step 2 of 4')).to_be_visible()
    expect(user.button('Generating')).to_be_disabled()
    user.button('Stop').click()
    expect(page.get_by_text('stopped', exact=True)).to_be_visible()

    # a mistake is one line, and no clip stands below it
    user.run(['C3B'], 4, 'cannot be spelled')
    assert page.get_by_text('cannot be spelled').bounding_box()['height'] < 40
    expect(videos.first).not_to_be_visible()

    # two texts side by side
    user.type('Text', 'CAB')
    page.get_by_label('compare').check()
    expect(user.field('Text', 1)).to_have_value('CAB')
    user.run(['CAB', 'LAY'], 4, 'done in')
    expect(videos).to_have_count(2)
    left, right = (videos.nth(i).bounding_box() for i in range(2))
    assert right['x'] >= left['x'] + left['width'] and abs(right['y'] - left['y']) < 80

    # save
    name = f'panel-test-{os.getpid()}.gif'
    user.type('Save as', name)
    user.button('Save').click()
    expect(page.get_by_text('saved ')).to_be_visible()
    files = sorted((HERE/'outputs').glob(name.replace('.gif', '-?.gif')))
    assert len(files) == 2 and all(file.stat().st_size for file in files)
    for file in files: file.unlink()
    typing.check()
    page.mouse.move(0, 0)
    page.screenshot(path=HERE/'outputs'/'panel.png')


def test_typing(page):
    "A clip is there soon after the last key, without a click; the panel listens meanwhile."
    from playwright.sync_api import expect
    user, videos = User(page), page.locator('.jp-OutputArea video')
    title = page.locator('.widget-html b').first
    user.type('Steps', 4)
    user.keys('LAY')
    expect(page.get_by_text('done in')).to_be_visible()
    expect(videos).to_have_count(1)
    expect(title).to_have_text('LAY')
    page.wait_for_function('v => v.readyState >= 2 && v.currentTime > 0', arg=videos.element_handle())

    # the slider moves while the next one is made, and that one is given up for what is typed then
    user.type('Steps', 2000)
    user.keys('LAYS')
    expect(page.get_by_text(re.compile(r'step \d+ of 2000'))).to_be_visible()
    page.locator('.noUi-handle').press('ArrowLeft')
    expect(page.get_by_text('after step 3 of 4')).to_be_visible()
    user.type('Steps', 4)
    user.keys('CAB')
    expect(title).to_have_text('CAB')
    expect(page.get_by_text('done in')).to_be_visible()

    # a mistake is one line, and the clip stays
    user.keys('C3')
    expect(page.get_by_text('cannot be spelled')).to_be_visible()
    assert page.get_by_text('cannot be spelled').bounding_box()['height'] < 40
    expect(videos).to_be_visible()
    expect(title).to_have_text('CAB')

    # turned off, a key begins nothing
    page.get_by_label('while typing').uncheck()
    user.keys('BAD')
    page.wait_for_timeout(1500)
    expect(page.get_by_text('cannot be spelled')).to_be_visible()
    expect(title).to_have_text('CAB')


def test_phrase_is_made_and_read(page):
    from playwright.sync_api import expect
    user, videos = User(page), page.locator('.jp-OutputArea video')
    page.get_by_label('while typing').uncheck()
    user.run(['HI BO'], 1, 'done in')
    expect(videos).to_have_count(1)
    expect(page.locator('.frames > div')).to_have_count(25)             # five a letter less one, six for a rest
    expect(page.get_by_text('The reader sees')).to_be_visible()


@pytest.mark.parametrize('lab', [SLOW], indirect=True)
def test_long_text_appears_in_pieces(page):
    from playwright.sync_api import expect
    user, frames = User(page), page.locator('.frames > div')
    page.get_by_label('while typing').wait_for()
    page.evaluate(COUNTING)
    user.keys('ABACHED')
    expect(page.get_by_text('done in')).to_be_visible()
    expect(page.locator('.jp-OutputArea video')).to_have_count(1)
    expect(frames).to_have_count(34)                                            # 5*7-1
    counts = [count for count in page.evaluate('counts') if count]
    assert counts == [6, 12, 18, 22, 34]                                        # half windows of 12 frames
