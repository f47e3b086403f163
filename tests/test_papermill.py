"""The training notebook as people run it: headless, on a foreign checkpoint and on a folder of videos."""
import argparse
import dataclasses
import json
import os
import re
import shutil

import numpy as np
import papermill
import pytest
import torch

from text2sign.checkpoint import load_model, read_checkpoint
from text2sign.clips import Clips
from text2sign.core import exclusive, workspace
from text2sign.dit import DiT
from text2sign.runs import read_history
from text2sign.settings import Settings
from text2sign.train import train
from text2sign.trainer import list_checkpoints
from text2sign.words import splits

TINY = dict(stage='both', pretrained='', score_words=0, size=32, words=40, width=48, depth=2, heads=2, frames=9,
            max_letters=2, batch=2, image_steps=40, steps=4)


@pytest.fixture
def run(monkeypatch):
    "A name for a run, of which nothing is left afterwards."
    monkeypatch.delenv('IN_TEST', raising=False)        # the runner of notebooks leaves it behind
    name, base = f'pytest-{os.getpid()}', workspace() / 'checkpoints'
    latest = base / 'latest'
    before = os.readlink(latest) if latest.is_symlink() else None
    yield name
    shutil.rmtree(base / name, ignore_errors=True)
    shutil.rmtree(workspace() / 'outputs' / 'runs' / name, ignore_errors=True)
    latest.unlink(missing_ok=True)
    if before: latest.symlink_to(before)


def execute(output, **parameters):
    "What the notebook printed and showed."
    os.environ.pop('PYTEST_CURRENT_TEST', None)         # else a kernel leaves out what its child processes print
    notebook = workspace() / 'nbs' / '05_train.ipynb'
    papermill.execute_notebook(notebook, output, parameters, progress_bar=False)
    return output.read_text()


def trained(tmp_path, run, **parameters):
    "The loaded video model, its history, what the notebook printed."
    said = execute(tmp_path / 'out.ipynb', **dict(run=run, log_every=1, sample_every=2) | parameters)
    return load_model(run), read_history(workspace() / 'checkpoints' / run, 'video'), said


def test_release_checkpoint(tmp_path, run):
    "A pickle in the release's layout (here narrow) goes into a video model of latents; two processes train it."
    torch.manual_seed(0)
    dit = DiT(size=32, patch=2, channels=4, width=64, depth=2, heads=1, classes=1000, learn_sigma=True)
    with torch.no_grad():
        for p in dit.parameters(): p.add_(torch.randn_like(p) * .02)
    weights = tmp_path / 'release.pt'
    torch.save(dict(ema=dit.state_dict(), args=argparse.Namespace(model='TinyDiT')), weights)
    latents = np.random.default_rng(0).standard_normal((12, 3, 32, 32, 4)).astype(np.float16)
    Clips(latents, [f'word {i}' for i in range(12)]).save(tmp_path / 'latents.npz')
    model, history, said = trained(tmp_path, run, stage='video', pretrained=str(weights), processes=2,
                                   data=str(tmp_path / 'latents.npz'), batch=2, steps=2, lr=1e-4)
    assert (model.learn_sigma, model.classes, model.channels) == (True, 1000, 4)
    assert model.config.objective == 'epsilon'
    assert f'{len(dit.state_dict())} copied' in said and 'dropped' not in said.split(' copied')[1][:40]
    assert all(np.isfinite(row['val_loss']) for row in history if 'val_loss' in row)
    assert history[-1]['step'] == 2


def write_video(path, rng):
    "A landscape clip in which a square moves."
    import av
    with av.open(str(path), 'w') as file:
        stream = file.add_stream('libx264', rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, 'yuv420p'
        for t in range(30):
            frame = np.full((180, 320, 3), 90, np.uint8)
            frame[40:100, 60 + 5 * t:120 + 5 * t] = rng.integers(100, 255, 3)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        file.mux(stream.encode())


def test_folder_of_videos(tmp_path, run):
    "Landscape clips with their texts, one of them broken: training goes on with the others."
    rng, folder = np.random.default_rng(0), tmp_path / 'clips'
    folder.mkdir()
    for i in range(12):
        (folder / f'{i}.txt').write_text(f'word{i % 4}')
        write_video(folder / f'{i}.mp4', rng)
    (folder / 'bad.mp4').write_bytes(b'no video')
    (folder / 'bad.txt').write_text('bad')
    shape = dict(size=32, width=48, depth=2, heads=2)
    model, history, said = trained(tmp_path, run, data=str(folder), image_steps=2, steps=2, batch=2, **shape)
    assert 'bad.mp4' in said and '12 of 13 clips read' in said
    assert (model.config.width, model.config.text_position) == (48, 'place')    # a clip's own length: no pretrained one
    assert history[-1]['step'] == 2 and model.config.alphabet == () and model.config.words == 0


def test_fine_tuning(tmp_path, run, monkeypatch):
    "The way without arguments, shortened: the shipped model's own words stay the measure of what is unseen."
    monkeypatch.setenv('JPY_SESSION_NAME', '/nbs/mine.ipynb')       # as where papermill is called from a notebook
    model, history, said = trained(tmp_path, run, steps=6, lr=1e-4, batch=2, words=12, score_words=3, score_steps=2,
                                   sample_every=6)
    assert (model.config.words, model.config.max_letters, model.config.look) == (8000, 6, 'mint')
    lists = splits()
    scored = [word for word in lists['unseen'] if len(word) == 3][:3]
    assert not set(scored) & set(lists['train'])
    assert {'cer', 'cer_second', 'cer_shuffled'} <= history[0].keys()
    assert history[-1]['val_loss'] < history[0]['val_loss']
    assert 'FigureWidget' not in said and 'reference clips' in said


def test_log_is_the_run(tmp_path, run):
    "A user's log holds his run and nothing else; and the same training from Python has equal weights, bit for bit."
    few = TINY | dict(image_steps=4, log_every=2, lr=2e-3)      # after four steps: without an alarm that all is alike
    said = execute(tmp_path / 'out.ipynb', run=run, **few)
    cells = [cell for cell in json.loads(said)['cells'] if cell['cell_type'] == 'code']
    lines = [line for cell in cells for out in cell['outputs'] if out.get('name') == 'stdout'
             for line in ''.join(out['text']).splitlines()]
    assert lines[0].startswith(f'run {run} on ')
    logged = [' '.join(line.split()[:2]) for line in lines if re.match('(image|video) +[0-9]', line)]
    assert logged == [f'{stage} {step}/4' for stage in ('image', 'video') for step in (0, 2, 4)]
    assert [line for line in lines if any(word in line for word in ('nan', 'alarm', 'skipped'))] == []
    assert len(cells) <= 16
    result = train(Settings(run='mine', **few), tmp_path)
    ours, theirs = (read_checkpoint(folder / 'video.safetensors')[0]
                    for folder in (result.folder, workspace() / 'checkpoints' / run))
    assert ours.keys() == theirs.keys() and all(ours[k].equal(v) for k, v in theirs.items())


def test_chain_of_calls(tmp_path, run):
    """The clock ends a call within the image stage; the next one, given nothing but the name, finishes that stage
    before it builds words on it."""
    folder = workspace() / 'checkpoints' / run
    said = execute(tmp_path / 'first.ipynb', **dict(run=run, minutes=1e-4, keep=2, log_every=4) | TINY)
    steps = [int(p.stem.split('-')[-1]) for p in list_checkpoints(folder, 'image')]
    assert 0 < steps[-1] < 40 and not list_checkpoints(folder, 'video')
    assert f'to be continued: -p resume {run}' in said
    said = execute(tmp_path / 'second.ipynb', resume=run, minutes=9., log_every=10)
    assert list_checkpoints(folder, 'image')[-1].stem.endswith('0000040')
    assert list_checkpoints(folder, 'video')[-1].stem.endswith('0000004')
    assert f'run {run} on' in said
    assert 'keep=2' in said and 'log_every=4' not in said           # 10 is the default, but it was given
    other = f'{run} was made with other settings: width was 48, now 256'
    with pytest.raises(papermill.PapermillExecutionError, match=other):
        execute(tmp_path / 'third.ipynb', resume=run, width=256)    # 256 is the default, too


def test_help():
    "papermill --help-notebook lists every setting with its kind, its default and its help."
    listed = papermill.inspect_notebook(str(workspace() / 'nbs' / '05_train.ipynb'))
    known = {f.name: f for f in dataclasses.fields(Settings)}
    assert listed.keys() == known.keys()
    for name, parameter in listed.items():
        assert parameter['inferred_type_name'] == known[name].type.__name__
        assert parameter['help'] == known[name].metadata['help']


def test_mistakes(tmp_path, run):
    "One line before anything is computed, with the nearest right name; and one training at a time in a folder."
    with pytest.raises(papermill.PapermillExecutionError, match="no setting 'stepz'; did you mean steps?"):
        execute(tmp_path / 'out.ipynb', run=run, stepz=9)
    with pytest.raises(papermill.PapermillExecutionError, match='batch=4 does not divide'):
        execute(tmp_path / 'out.ipynb', run=run, accumulation=3)
    with exclusive(workspace() / 'checkpoints' / run):
        with pytest.raises(papermill.PapermillExecutionError, match=f"run '{run}' is being trained by another"):
            execute(tmp_path / 'out.ipynb', run=run)
