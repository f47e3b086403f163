"""The training notebook as people run it: headless, on a foreign checkpoint and on a folder of videos."""
import argparse, os, shutil

import numpy as np
import papermill
import pytest
import torch

from text2sign.corpus import Clips, root, splits
from text2sign.dit import DiT
from text2sign.surgery import load, read_checkpoint
from text2sign.train import states


@pytest.fixture
def run(monkeypatch):
    "A name for a run, of which nothing is left afterwards."
    monkeypatch.delenv('IN_TEST', raising=False)                    # the runner of notebooks leaves it behind, and the notebook would play a test
    name, latest = f'pytest-{os.getpid()}', root()/'checkpoints'/'latest'
    before = os.readlink(latest) if latest.is_symlink() else None
    yield name
    for folder in (root()/'checkpoints'/name, root()/'outputs'/'runs'/name): shutil.rmtree(folder, ignore_errors=True)
    latest.unlink(missing_ok=True)
    if before: latest.symlink_to(before)


def trained(tmp_path, run, **parameters):
    "The loaded video model and its history."
    os.environ.pop('PYTEST_CURRENT_TEST', None)                     # where it is set, a kernel leaves out what its child processes print
    papermill.execute_notebook(root()/'nbs'/'05_train.ipynb', tmp_path/'out.ipynb', dict(run=run, log_every=1, sample_every=2) | parameters, progress_bar=False)
    folder = root()/'checkpoints'/run
    return load(run), read_checkpoint(states(folder, 'video')[-1])[1]['history'], (tmp_path/'out.ipynb').read_text()


def test_release_checkpoint(tmp_path, run):
    "A pickle in the release's layout (here narrow) goes into a video model of latents, every tensor accounted for; two processes train it."
    torch.manual_seed(0)
    dit = DiT(size=32, patch=2, channels=4, width=64, depth=2, heads=1, classes=1000, learn_sigma=True)
    with torch.no_grad():
        for p in dit.parameters(): p.add_(torch.randn_like(p)*.02)
    torch.save(dict(ema=dit.state_dict(), args=argparse.Namespace(model='TinyDiT')), tmp_path/'release.pt')
    latents = np.random.default_rng(0).standard_normal((12, 3, 32, 32, 4)).astype(np.float16)
    Clips(latents, [f'word {i}' for i in range(12)]).save(tmp_path/'latents.npz')
    model, history, said = trained(tmp_path, run, stage='video', pretrained=str(tmp_path/'release.pt'), data=str(tmp_path/'latents.npz'), batch=2, steps=2, lr=1e-4, processes=2)
    assert (model.learn_sigma, model.classes, model.config['objective'], model.channels) == (True, 1000, 'epsilon', 4)
    assert f'{len(dit.state_dict())} copied' in said and 'dropped' not in said.split(' copied')[1][:40]
    assert all(np.isfinite(row['held_out']) for row in history if 'held_out' in row) and history[-1]['step'] == 2


def test_folder_of_videos(tmp_path, run):
    "Landscape clips with their texts, one of them broken: training goes on with the others."
    import av
    rng, folder = np.random.default_rng(0), tmp_path/'clips'
    folder.mkdir()
    for i in range(12):
        (folder/f'{i}.txt').write_text(f'word{i % 4}')
        with av.open(str(folder/f'{i}.mp4'), 'w') as file:
            stream = file.add_stream('libx264', rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 180, 'yuv420p'
            for t in range(30):
                frame = np.full((180, 320, 3), 90, np.uint8)
                frame[40:100, 60 + 5*t:120 + 5*t] = rng.integers(100, 255, 3)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
            file.mux(stream.encode())
    (folder/'bad.mp4').write_bytes(b'no video'); (folder/'bad.txt').write_text('bad')
    model, history, said = trained(tmp_path, run, data=str(folder), steps=2, batch=2)
    assert 'bad.mp4' in said and '12 of 13 clips read' in said
    assert model.config['width'] == 256 and 'words' not in model.config             # from the shipped model, of whose words nothing is known any more
    assert history[-1]['step'] == 2 and model.config['alphabet'] == ''


def test_fine_tuning(tmp_path, run):
    "The way without arguments, shortened: from the shipped model, whose own words stay the measure of what is unseen."
    model, history, said = trained(tmp_path, run, steps=6, lr=1e-4, batch=2, words=12, score_words=3, score_steps=2, sample_every=6)
    assert (model.config['words'], model.config['max_letters'], model.config['look']) == (8000, 6, 'mint')
    lists = splits()
    scored = [w for w in lists['unseen'] if len(w) == 3][:3]
    assert not set(scored) & set(lists['train'])
    assert {'cer', 'cer_second', 'cer_shuffled'} <= history[0].keys() and history[-1]['held_out'] < history[0]['held_out']


def test_chain_of_calls(tmp_path, run):
    "The clock ends a call within the image stage; the next one, given nothing but the name, finishes that stage before it builds words on it."
    tiny = dict(stage='both', pretrained='', score_words=0, size=32, words=40, width=48, depth=2, heads=2, frames=9, max_letters=2, batch=2, image_steps=40, steps=4)
    folder = root()/'checkpoints'/run
    papermill.execute_notebook(root()/'nbs'/'05_train.ipynb', tmp_path/'first.ipynb', dict(run=run, minutes=1e-4, keep=2, log_every=4) | tiny, progress_bar=False)
    steps = [int(p.stem.split('-')[-1]) for p in states(folder, 'image')]
    assert 0 < steps[-1] < 40 and not states(folder, 'video')
    assert f'to be continued: -p resume {run}' in (tmp_path/'first.ipynb').read_text()
    papermill.execute_notebook(root()/'nbs'/'05_train.ipynb', tmp_path/'second.ipynb', dict(resume='latest', minutes=9., log_every=10), progress_bar=False)
    assert states(folder, 'image')[-1].stem.endswith('0000040') and states(folder, 'video')[-1].stem.endswith('0000004')
    said = (tmp_path/'second.ipynb').read_text()
    assert 'keep=2' in said and 'log_every=4' not in said           # 10 is the notebook's own: it was given all the same
    assert f'run {run} on' in said
    with pytest.raises(papermill.PapermillExecutionError, match=f'{run} was made with other settings: width was 48, now 256'): papermill.execute_notebook(root()/'nbs'/'05_train.ipynb', tmp_path/'third.ipynb', dict(resume=run, width=256), progress_bar=False)
