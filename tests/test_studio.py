"""The panel as a new user meets it: a real JupyterLab in headless Chromium. A word is typed, a button clicked, a video plays.

Leaves a screenshot in outputs/panel.png. Skipped where there is no Chromium."""
import json, os, re, secrets, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
QUIET = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here, so the panel was not tried in a browser: apt-get install chromium')


@pytest.fixture
def cell(tmp_path):
    "What the user's notebook says: the shipped model where there is one, else a tiny untrained model and reader, whose clips are noise."
    if (HERE/'checkpoints'/'fs-ase.safetensors').exists(): return 'from text2sign.studio import panel\npanel()'
    import torch
    from text2sign.dit import VideoDiT
    from text2sign.evaluate import Reader
    from text2sign.surgery import save
    model = VideoDiT(size=32, patch=8, channels=3, width=48, depth=1, heads=2, classes=27, learn_sigma=False)
    model.config |= dict(objective='flow', frames=14, fps=12., alphabet='ABCDEFGHIJKLMNOPQRSTUVWXYZ', language='ase', crop='hand')
    with torch.no_grad(): model.final_layer.linear.weight.normal_(std=.1)
    save(tmp_path/'models'/'tiny.safetensors', model)
    Reader(size=32, width=8).save(tmp_path/'models'/'reader-conv.safetensors')
    return f'from text2sign.studio import panel\npanel("tiny", folder={str(tmp_path/"models")!r})'


@pytest.fixture
def lab(tmp_path, cell):
    "JupyterLab with nothing of this machine's own configuration; gives the notebook's address."
    home, token = tmp_path/'jupyter', secrets.token_hex(16)
    news = home/'settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    news.parent.mkdir(parents=True); news.write_text('{"fetchNews": "false"}')
    (tmp_path/'notebooks').mkdir()
    (tmp_path/'notebooks'/'mine.ipynb').write_text(json.dumps(dict(
        cells=[dict(cell_type='code', id='a', metadata={}, execution_count=None, outputs=[], source=cell)], nbformat=4, nbformat_minor=5,
        metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    folders = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces', IPYTHONDIR='ipython')
    env = os.environ | {k: str(home/v) for k, v in folders.items()} | dict(PYTHONPATH=f'{HERE}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    log = open(tmp_path/'lab.log', 'w')
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
                               f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={tmp_path/"notebooks"}'], env=env, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token={token}', timeout=5).close(); break
            except OSError: assert server.poll() is None, (tmp_path/'lab.log').read_text()[-2000:]; time.sleep(.5)
        yield f'http://127.0.0.1:{port}/lab/tree/mine.ipynb?token={token}&reset'
    finally: server.terminate(); server.wait(30); log.close()


def test_panel(lab, tmp_path):
    from playwright.sync_api import expect, sync_playwright
    with sync_playwright() as p:
        context = p.chromium.launch_persistent_context(str(tmp_path/'profile'), executable_path=CHROMIUM, args=QUIET, viewport=dict(width=1280, height=1000))
        page = context.new_page()
        page.set_default_timeout(30_000); expect.set_options(timeout=30_000)
        page.goto(lab)
        page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_text('Run All Cells', exact=True).click()

        label = lambda name, i=0: page.locator(f'.widget-inline-hbox:has(.widget-label:text-is("{name}")) input').nth(i)
        button = lambda name: page.get_by_role('button', name=name, exact=True)
        videos = page.locator('.jp-OutputArea video')
        def run(texts, steps, seen): # type, click, wait
            for i, text in enumerate(texts): label('Text', i).fill(text); label('Text', i).press('Tab'); label('Steps', i).fill(str(steps)); label('Steps', i).press('Tab')
            button('Generate').click()
            expect(page.get_by_text(seen)).to_be_visible()

        # a word, a click, a playing video, letters under its frames
        run(['LAY'], 4, 'done in')
        expect(videos).to_have_count(1)
        page.wait_for_function('v => v.readyState >= 2 && v.currentTime > 0', arg=videos.element_handle())
        now = videos.evaluate('v => v.currentTime')
        page.wait_for_function('([v, t]) => v.currentTime != t', arg=[videos.element_handle(), now])
        expect(page.get_by_text('The reader sees')).to_be_visible()
        expect(page.locator('.frames > div')).to_have_count(14)                   # 5*3-1

        # the scrubber
        expect(page.get_by_text('after step 4 of 4')).to_be_visible()
        page.locator('.noUi-handle').press('ArrowLeft')
        expect(page.get_by_text('after step 3 of 4')).to_be_visible()

        # while it runs: a second click has no button to hit, the scrubber still answers, Stop stops
        run(['LAY'], 2000, re.compile(r'step \d+ of 2000'))
        expect(button('Generating')).to_be_disabled()
        page.locator('.noUi-handle').press('ArrowLeft')
        expect(page.get_by_text('after step 2 of 4')).to_be_visible()
        expect(button('Generating')).to_be_disabled()
        button('Stop').click()
        expect(page.get_by_text('stopped', exact=True)).to_be_visible()

        # a mistake is one line, and what was there stays
        run(['C3B'], 4, 'cannot be spelled')
        assert page.get_by_text('cannot be spelled').bounding_box()['height'] < 40
        expect(videos).to_have_count(1)

        # two texts side by side
        label('Text').fill('CAB'); label('Text').press('Tab')
        page.locator('.widget-checkbox input').check()
        expect(label('Text', 1)).to_have_value('CAB')
        run(['CAB', 'LAY'], 4, 'done in')
        expect(videos).to_have_count(2)
        left, right = (videos.nth(i).bounding_box() for i in range(2))
        assert right['x'] >= left['x'] + left['width'] and abs(right['y'] - left['y']) < 80

        # save
        name = f'panel-test-{os.getpid()}.gif'
        label('Save as').fill(name); label('Save as').press('Tab')
        button('Save').click()
        expect(page.get_by_text('saved ')).to_be_visible()
        files = sorted((HERE/'outputs').glob(name.replace('.gif', '-?.gif')))
        try: assert len(files) == 2 and all(f.stat().st_size for f in files)
        finally: [f.unlink() for f in files]
        page.mouse.move(0, 0); page.screenshot(path=HERE/'outputs'/'panel.png')
        context.close()
