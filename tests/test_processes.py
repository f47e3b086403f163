"""Training in processes of its own: killed at random moments it ends as if left alone; two processes equal one."""
import io
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext, redirect_stdout

import numpy as np
import pytest

from text2sign.checkpoint import read_checkpoint
from text2sign.trainer import list_checkpoints

server = multiprocessing.get_context('forkserver')  # imports everything once, then starts processes in no time
server.set_forkserver_preload(['text2sign.train', 'pytest'])


def job(accelerator, folder, steps, save_minutes, accumulation, tight):
    "A tiny training that goes on where it stopped; the same in every process that runs it."
    import torch

    from text2sign import speed
    from text2sign.batches import Batches
    from text2sign.clips import Clips
    from text2sign.diffusion import Flow
    from text2sign.train import fit
    from text2sign.trainer import Recipe, Trainer, ValLoss
    from text2sign.video import VideoDiT

    rng = np.random.default_rng(0)
    clips = Clips(rng.integers(0, 255, (6, 5, 32, 32, 3), dtype=np.uint8), list('ABCDEF'))
    torch.manual_seed(0)
    shape = dict(size=32, patch=8, channels=3, width=48, depth=2, heads=2, classes=27)
    model = VideoDiT(**shape, learn_sigma=False, qk_norm=True)
    tr = Trainer(model, Flow(), Recipe(steps, lr=2e-3, accumulation=accumulation), accelerator=accelerator)
    if list_checkpoints(folder, 'video'): tr.resume(folder, 'video')
    batches = Batches(clips, False, 4, drop=0.2)
    if tight:  # the second process has room for one clip at a time
        speed.fits_in_memory = lambda tr, batches: tr.rank == 0 or tr.recipe.accumulation == 2
        tr.recipe = speed.find_memory_settings(tr, batches)
    val_loss = ValLoss(Batches(clips, False, 6, seed=5, drop=0.), Flow())
    fit(tr, batches, val_loss, folder, 'video', log_every=10, sample_every=30, save_minutes=save_minutes)


def train(folder, steps, save_minutes=0., processes=1, accumulation=1, tight=False):
    "In this process, or in several that it starts."
    import torch

    from text2sign.processes import launch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
    args = folder, steps, save_minutes, accumulation, tight
    if processes == 1: job(None, *args)
    else: launch(job, processes, *args)


def run(**kwargs):
    process = server.Process(target=train, kwargs=kwargs)
    process.start()
    return process


def finished(folder, **kwargs):
    process = run(folder=folder, **kwargs)
    process.join()
    assert process.exitcode == 0
    return read_checkpoint(list_checkpoints(folder, 'video')[-1])[0]


def test_killed_ten_times(tmp_path):
    chance, folder = np.random.default_rng(0), tmp_path/'killed'
    for _ in range(10):
        before, process = list_checkpoints(folder, 'video'), run(folder=folder, steps=60)
        while process.is_alive() and list_checkpoints(folder, 'video') == before:
            time.sleep(0.01)  # lets it get on by one save at least
        process.join(chance.uniform(0, 0.1))
        assert process.exitcode is None, 'it was to be killed, but ended by itself'
        process.kill()
        process.join()
    killed, alone = finished(folder, steps=60), finished(tmp_path/'alone', steps=60, save_minutes=1.)
    assert killed.keys() == alone.keys()
    assert all((killed[k] == v).all() for k, v in alone.items())
    names = sorted(p.name for p in folder.iterdir() if p.name != '.lock')
    assert names == ['video-state-0000060.safetensors', 'video.safetensors']


@pytest.mark.parametrize('accumulation', [1, 2])
def test_two_processes(tmp_path, accumulation):
    two = finished(tmp_path/'two', steps=6, processes=2, accumulation=accumulation)
    one = finished(tmp_path/'one', steps=6, accumulation=2*accumulation)
    apart = [(two[k] - v).abs().max().item() for k, v in one.items() if k.startswith('model.')]
    assert max(apart) < 2e-5


def test_room_in_two_processes(tmp_path):
    "Where one process has less memory, both take smaller microbatches."
    finished(tmp_path, steps=2, processes=2, tight=True)
    assert read_checkpoint(list_checkpoints(tmp_path, 'video')[-1])[1]['recipe']['accumulation'] == 2


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_interrupted_processes(tmp_path, name):
    "Ctrl-C, in a notebook or under `text2sign train`, ends both processes before their last step, with a state."
    process = run(folder=tmp_path/'two', steps=400, processes=2)
    while process.is_alive() and not list_checkpoints(tmp_path/'two', 'video'): time.sleep(0.05)
    os.kill(process.pid, getattr(signal, name))
    process.join(60)
    assert process.exitcode == 1  # KeyboardInterrupt
    step = int(list_checkpoints(tmp_path/'two', 'video')[-1].stem.split('-')[-1])
    assert 0 < step < 400 and (tmp_path/'two'/'video.safetensors').exists()


def test_mistake_in_a_process(tmp_path):
    "What is wrong in one of the processes is said in one line by the one that started them."
    import torch
    threads, before = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(ValueError, match='^batch 4 does not divide into 3 equal pieces'):
            train(folder=tmp_path, steps=6, processes=3)
        (tmp_path/'file').write_text('no folder')
        with pytest.raises(OSError, match='^could not save .*file'):
            train(folder=tmp_path/'file', steps=2, processes=2)
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, before)


TINY = dict(stage='image', pretrained='', score_words=0, size=32, words=8, width=48, depth=1, heads=2, frames=9,
            max_letters=2, precision='fp32', image_batch=8, image_steps=6, log_every=2, sample_every=6)


def command(home, **settings):
    "Two processes that torchrun starts, meeting at a free port of this machine; they train in `home`."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        where = ['--master-addr', '127.0.0.1', '--master-port', str(s.getsockname()[1])]
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', *where]
    return [*torchrun, __file__, str(home), json.dumps(settings)]


def last_state(home): return read_checkpoint(list_checkpoints(home/'checkpoints'/'a', 'image')[-1])


def test_torchrun(tmp_path):
    """One run of two processes, whose time is up at the first line of the log; resumed it ends with the weights of a
    single process."""
    done = subprocess.run(command(tmp_path, run='a', **TINY, minutes=1e-4), capture_output=True, text=True)
    assert done.stdout.count('run a on cpu') == done.stdout.count('out of time at step 2 of 6') == 1, done.stderr
    assert sorted(path.name for path in (tmp_path/'checkpoints').iterdir()) == ['a', 'latest']
    done = subprocess.run(command(tmp_path, resume='a', minutes=0), capture_output=True, text=True)
    assert done.returncode == 0 and '6/6' in done.stdout, done.stderr
    two, config = last_state(tmp_path)
    assert config['step'] == 6
    process = server.Process(target=train_run, args=(tmp_path/'one', dict(run='a', **TINY, minutes=0)))
    process.start()
    process.join()
    one = last_state(tmp_path/'one')[0]
    apart = [(two[k] - v).abs().max().item() for k, v in one.items() if k.startswith('model.')]
    assert max(apart) < 1e-5                                        # in fp32: sums in another order


@pytest.mark.slow
def test_interrupted_torchrun(tmp_path):
    "SIGTERM to torchrun ends both processes with a state, before their last step."
    long = TINY | dict(image_steps=100_000, save_minutes=0.)
    process = subprocess.Popen(command(tmp_path, run='a', **long), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and not list_checkpoints(tmp_path/'checkpoints'/'a', 'image'): time.sleep(0.05)
    process.terminate()
    said = process.communicate(timeout=60)[0].decode()
    step = last_state(tmp_path)[1]['step']
    assert said.count(f'interrupted at step {step}; saved') == 1, said
    assert process.returncode and step % 2 == 0


def test_mistake_under_torchrun(tmp_path):
    "A wrong setting is one line, once; no process ends well, and no run is left."
    done = subprocess.run(command(tmp_path, run='a', **TINY | dict(image_batch=3)), capture_output=True, text=True)
    assert done.stderr.count('text2sign: error: image_batch=3 does not divide') == 1, done.stderr
    codes = re.findall(r'exitcode +: (-?\d+)', done.stderr)         # the other process is stopped, where it is slower
    assert done.returncode and codes and set(codes) <= {'1', '2', '-15'}, done.stderr
    assert not (tmp_path/'checkpoints'/'a').exists()


def train_run(home, settings):
    from text2sign.settings import Settings
    from text2sign.train import train as train_settings
    train_settings(Settings(**settings), home)


def small(accelerator, kind, seed=0):
    "A trainer of six steps, and its data: the same in every process, where the seed is."
    import torch

    from text2sign.batches import Batches
    from text2sign.clips import Clips
    from text2sign.diffusion import Flow
    from text2sign.trainer import Recipe, ValLoss
    from text2sign.video import VideoDiT

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    clips = Clips(np.random.default_rng(0).integers(0, 255, (6, 5, 32, 32, 3), dtype=np.uint8), list('ABCDEF'))
    shape = dict(size=32, patch=8, channels=3, width=48, depth=2, heads=2, classes=27)
    model, recipe = VideoDiT(**shape, learn_sigma=False, qk_norm=True), Recipe(6, lr=2e-3, grad_clip=0.2)   # clips
    tr = kind(model, Flow(), recipe, (), accelerator)
    return tr, Batches(clips, False, 4, drop=0.2), ValLoss(Batches(clips, False, 6, seed=5, drop=0.), Flow())


def preview(model):
    from text2sign.sample import generate
    return [('A', clip) for clip in generate(model, ['A'], frames=5, steps=2, precision='fp32')]


def go_on(accelerator, kind, folder, seed=0, **cadence):
    "Train from where the folder is to the end, or until `minutes` are over."
    from text2sign.train import fit

    tr, batches, val_loss = small(accelerator, kind, seed)
    if list_checkpoints(folder, 'video'): tr.resume(folder, 'video')
    shown = []
    def keep(stage, row, previews): shown.append({name: clips[0][1] for name, clips in previews.items()})
    fit(tr, batches, val_loss, folder, 'video', preview, callbacks=[keep],
        **dict(log_every=3, sample_every=3) | cadence)
    return tr, shown


def interrupted_in_one(kind):
    "A trainer whose second process gets Ctrl-C within its second step."
    class Interrupted(kind):
        def prepare_batch(self, batches, step):
            if self.rank and step == 1: signal.raise_signal(signal.SIGINT)
            return super().prepare_batch(batches, step)
    return Interrupted


def split_job(accelerator, home):
    "What takes two processes, in two that are started once. What they find is asserted below, by the one that waits."
    import torch

    from text2sign.fsdp import FSDPTrainer
    from text2sign.trainer import Trainer

    go_on(accelerator, Trainer, home/'replicated')
    tr, shown = go_on(accelerator, FSDPTrainer, home/'split')
    here = dict(weights=tr.params.values(), average=tr.ema.mean.values(),
                moments=[m for state in tr.optimizer.state.values() for m in (state['exp_avg'], state['exp_avg_sq'])])
    sizes = {name: [sum(t.to_local().nbytes for t in tensors), sum(t.nbytes for t in tensors)]
             for name, tensors in here.items()}
    (home/f'sizes-{accelerator.process_index}.json').write_text(json.dumps(sizes))
    if accelerator.is_main_process: np.savez(home/'shown.npz', **shown[-1])
    else: assert not shown

    with pytest.raises(KeyboardInterrupt) if accelerator.process_index else nullcontext():     # the other follows
        go_on(accelerator, interrupted_in_one(FSDPTrainer), home/'parts', sample_every=6)
    go_on(accelerator, FSDPTrainer, home/'parts', seed=1)
    go_on(accelerator, FSDPTrainer, home/'from one', seed=2)
    go_on(accelerator, FSDPTrainer, home/'to one', minutes=1e-9)
    go_on(accelerator, FSDPTrainer, home/'to replicated', minutes=1e-9)
    go_on(accelerator, Trainer, home/'to replicated', seed=3)

    tr, batches, _ = small(accelerator, FSDPTrainer)
    tr.train_step(batches)
    before = tr.state()[0]
    x, *rest = tr.prepare_batch(batches, 1)[0]
    tr.prepare_batch = lambda *_: [(x*(float('nan') if tr.rank else 1), *rest)]     # in one of the two
    tr.train_step(batches)
    assert tr.guard.check().skipped == 1
    after = tr.state()[0]
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith('model.'))


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    "A folder of runs by one process, by two, and by two of which each holds a part of the model."
    import torch

    from text2sign.processes import launch
    from text2sign.trainer import Trainer

    home, threads = tmp_path_factory.mktemp('split'), torch.get_num_threads()
    go_on(None, Trainer, home/'one')
    go_on(None, Trainer, home/'from one', minutes=1e-9)
    launch(split_job, 2, home)
    go_on(None, Trainer, home/'to one', seed=4)
    torch.set_num_threads(threads)
    return home


def final(home, run): return read_checkpoint(list_checkpoints(home/run, 'video')[-1])


@pytest.mark.parametrize('run', ['replicated', 'split', 'from one', 'to one', 'to replicated'])
def test_split_equals_one(split, run):
    """In fp32, up to sums in another order: 1e-7 of a loss or a norm, and of weights that have moved by 1e-2 about 1e-6
    (measured: 6e-7), more where AdamW divides by gradients that are as small as their rounding."""
    (theirs, other), (ours, config) = final(split, 'one'), final(split, run)
    assert config['step'] == 6 and ours.keys() == theirs.keys()
    apart = {name: (ours[name] - v).abs().max().item() for name, v in theirs.items()}
    assert max(apart.values()) < 2e-5
    rows = {row['step']: row for row in other['history']}
    for row in config['history']:
        for name in row.keys() & rows.get(row['step'], {}).keys():
            if 'loss' in name or 'norm' in name: assert row[name] == pytest.approx(rows[row['step']][name], rel=1e-5)
    if 'one' not in run: assert [row['step'] for row in config['history'] if 'val_loss' in row] == [0, 3, 6]


def test_split_and_resumed(split):
    "The same two processes, interrupted at their first line of the log, and begun again: bit for bit."
    (ours, config), (theirs, _) = final(split, 'parts'), final(split, 'split')
    assert all(ours[name].equal(v) for name, v in theirs.items())
    assert [(row['step'], 'val_loss' in row) for row in config['history']] == [(0, True), (3, False), (6, True)]


def test_split_in_half(split):
    "Of weights, average and moments each process holds one half: all have an even number of rows."
    both = [json.loads((split/f'sizes-{rank}.json').read_text()) for rank in range(2)]
    for name in ('weights', 'average', 'moments'):
        (first, whole), (second, _) = (sizes[name] for sizes in both)
        assert 2*first == 2*second == whole > 1_000_000


def test_split_is_sampled_by_one(split):
    "The file gives the clip that two processes together showed."
    from text2sign.checkpoint import load_model

    shown, model = np.load(split/'shown.npz'), load_model(split/'split'/'video.safetensors')
    clip = preview(model)[0][1]
    assert clip.shape == (5, 32, 32, 3) and clip.std() > 3   # of gray levels, after six steps
    assert (clip != shown['average']).mean() < 1e-3 < 0.1 < (clip != shown['raw']).mean()   # a rounding of bytes apart


def test_split_run(tmp_path):
    "By settings, of an image model: two processes until their time is up, then one."
    with redirect_stdout(io.StringIO()) as printed:
        train_run(tmp_path, dict(run='a', fsdp=True, processes=2, minutes=1e-4, **TINY))
        train_run(tmp_path, dict(resume='a', minutes=0))
    weights, config = last_state(tmp_path)
    assert config['step'] == 6 and all(w.isfinite().all() for w in weights.values())
    assert 'to be continued' in printed.getvalue() and 'processes=1' not in printed.getvalue()


if __name__ == '__main__':  # what torchrun starts: `text2sign train` at another home
    from text2sign import cli, core
    core.find_checkout = lambda: None
    os.chdir(sys.argv[1])
    pairs = [text for name, value in json.loads(sys.argv[2]).items() for text in ('-p', name, str(value))]
    sys.exit(cli.main(['train', *pairs]))
