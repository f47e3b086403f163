"""Faults put into trainings: kills, full disks and a second command at random moments. Each training then ends bit for
bit as one that was left alone, or says in one line what is wrong; no file is ever damaged."""
import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from text2sign.checkpoint import read_checkpoint
from text2sign.trainer import list_checkpoints

server = multiprocessing.get_context('forkserver')  # imports everything once, then starts processes in no time
server.set_forkserver_preload(['text2sign.train', 'text2sign.sample', 'torch.utils.tensorboard', 'torch._dynamo'])
TINY = dict(stage='both', pretrained='', size=32, words=12, max_letters=2, frames=9, width=32, depth=1, heads=2,
            image_steps=10, steps=20, image_batch=4, batch=2, score_words=0, minutes=0, save_minutes=0, log_every=4,
            device='cpu')


def command(home, log, settings, file_bytes):
    "What `text2sign train` does, in a process of its own: 2 and one line for a mistake."
    import torch

    from text2sign.settings import Settings
    from text2sign.train import train
    if hasattr(os, 'setpgrp'): os.setpgrp()
    os.environ['TEXT2SIGN_HOME'] = str(home/'cache')
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(log, 'w', buffering=1)
    if file_bytes:                                              # no file gets larger than that: a disk that is full
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
    try: train(Settings(**settings), home)
    except (ValueError, OSError) as e:
        print(f'error: {e}')
        sys.exit(2)


class Run:
    "A training in a process of its own."
    count = 0

    def __init__(self, home, file_bytes=0, **settings):
        Run.count += 1
        home.mkdir(parents=True, exist_ok=True)
        self.log = home.with_name(f'{home.name}-{Run.count}.log')       # not on a disk that is full
        given = settings if 'resume' in settings else TINY | settings
        self.process = server.Process(target=command, args=(home, self.log, given, file_bytes))
        self.process.start()

    def end(self):
        "Its exit code, and the lines of an error."
        self.process.join(600)
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        assert self.process.exitcode in (0, 2), lines[-20:]
        errors = [i for i, line in enumerate(lines) if line.startswith('error: ')]
        assert not errors or errors == [len(lines) - 1], lines
        return self.process.exitcode, lines[-1] if errors else ''

    def kill(self):
        self.process.kill()
        self.process.join()


def resume_or_begin(home, **how):
    begun = (home/'checkpoints'/'mine'/'settings.json').exists()
    return Run(home, **how, **(dict(resume='mine') if begun else dict(run='mine')))


def saved(home, name='mine', stages=('image', 'video')):
    "All that a finished run has saved: tensors by file and name, and the steps."
    folder, out = home/'checkpoints'/name, {}
    for stage in stages:
        for path in (list_checkpoints(folder, stage)[-1], folder/f'{stage}.safetensors'):
            tensors, config = read_checkpoint(path)
            out |= {f'{path.name}/{key}': value for key, value in tensors.items()}
    return out


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all((a[key] == b[key]).all() for key in a)


def leftovers(home):
    "Files in the folders of runs that no run should leave."
    names = {path.name for path in (home/'checkpoints'/'mine').iterdir()}
    return {name for name in names if name.startswith('.') or '.safetensors.' in name} - {'.lock'}


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "What is saved where nothing happens."
    home = tmp_path_factory.mktemp('alone')
    assert Run(home, run='mine').end() == (0, '')
    return saved(home)


def kill_at_random(home, times, longest, **how):
    "Begin or go on, and kill it, so often. How many of the kills met a training that was not finished."
    chance, met = np.random.default_rng(0), 0
    for _ in range(times):
        run = resume_or_begin(home, **how)
        run.process.join(chance.uniform(0, longest))
        met += run.process.exitcode is None
        run.kill()
    return met


def test_kills(tmp_path, alone, request):
    "20 kills, at moments over the whole of a training: rendering, caches, saves, the change of stages."
    assert kill_at_random(tmp_path, 60 if request.config.getoption('--slow') else 20, longest=1.5) >= 10
    assert resume_or_begin(tmp_path).end() == (0, '')
    assert_same(saved(tmp_path), alone)
    assert not leftovers(tmp_path)


def wait(condition, run, seconds=300):
    "Until it holds, while the run goes on."
    deadline = time.time() + seconds
    while not condition():
        assert run.process.exitcode is None and time.time() < deadline, run.log.read_text().splitlines()[-20:]
        time.sleep(.01)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='other systems do not end the children of a killed process')
def test_kills_of_two_processes(tmp_path):
    """Killed once while its processes are launched and twice while they train. They end with the one that started
    them, and the next run goes on. (Each launch imports PyTorch anew in each process: that is what takes the time.)"""
    how, chance = dict(stage='image', image_steps=100, processes=2), np.random.default_rng(0)
    for phase in ('launching', 'training', 'training'):
        before, run = list_checkpoints(tmp_path/'checkpoints'/'mine', 'image'), resume_or_begin(tmp_path, **how)
        wait(lambda: 'Clips: ' in (run.log.read_text() if run.log.exists() else ''), run)
        if phase == 'training':
            wait(lambda: list_checkpoints(tmp_path/'checkpoints'/'mine', 'image') > before, run)
        run.process.join(chance.uniform(0, .1 if phase == 'training' else 5))
        launched = psutil.Process(run.process.pid).children(recursive=True)
        assert run.process.exitcode is None and (launched or phase == 'launching')
        run.kill()
        assert not psutil.wait_procs(launched, timeout=5 if phase == 'training' else 120)[1]
    assert resume_or_begin(tmp_path, **how).end() == (0, '')
    assert Run(tmp_path/'alone', run='mine', **how).end() == (0, '')
    assert_same(saved(tmp_path, stages=['image']), saved(tmp_path/'alone', stages=['image']))
    assert not leftovers(tmp_path)


def test_full_disks(tmp_path, alone, request):
    "Files cannot grow beyond a random size: a warning about a cache, or one line; then it goes on as if nothing was."
    pytest.importorskip('resource')
    chance = np.random.default_rng(1)
    for _ in range(30 if request.config.getoption('--slow') else 8):
        code, error = resume_or_begin(tmp_path, file_bytes=int(2**chance.uniform(9, 19))).end()
        assert code == 0 or 'File too large' in error, error
    assert resume_or_begin(tmp_path).end() == (0, '')
    assert_same(saved(tmp_path), alone)
    assert not leftovers(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    "Grows a file system of its own: `size -> folder`."
    folder = tmp_path/'disk'
    folder.mkdir()
    def grow(size, again=True):
        how = ['-o', f'remount,size={size}'] if again else ['-t', 'tmpfs', '-o', f'size={size}', 'tmpfs']
        return subprocess.run(['mount', *how, str(folder)], capture_output=True).returncode == 0
    if not shutil.which('mount') or not grow('64k', again=False): pytest.skip('file systems cannot be mounted here')
    yield folder, grow
    subprocess.run(['umount', '-l', str(folder)], check=True)


def test_full_file_system(small_disk, alone, request):
    "A disk that is really full, and gets larger from one start to the next."
    disk, grow = small_disk
    sizes = np.random.default_rng(2).uniform(16, 21, 30 if request.config.getoption('--slow') else 8)
    codes = []
    for size in np.sort(2**sizes).astype(int):
        assert grow(size)
        code, error = resume_or_begin(disk).end()
        assert code == 0 or 'No space left' in error, error
        codes.append(code)
    assert any(codes)                                   # the disk was full at least once
    assert grow('1g')
    assert resume_or_begin(disk).end() == (0, '')
    assert_same(saved(disk), alone)
    assert not leftovers(disk)


PAIRS = {'new and new': (dict(run='mine'), dict(run='mine')), 'resume and resume': (dict(resume='mine'),)*2,
         'latest and resume': (dict(resume='latest'), dict(resume='mine')),
         'resume and new': (dict(resume='mine'), dict(run='mine'))}


@pytest.mark.parametrize('pair', PAIRS)
def test_two_at_once(tmp_path, alone, pair):
    "One of the two trains, the other says in one line why not."
    one, two = PAIRS[pair]
    if 'resume' in one:
        run = Run(tmp_path, run='mine')
        while not (tmp_path/'checkpoints'/'mine'/'video.safetensors').exists(): time.sleep(.01)
        run.kill()
    first = Run(tmp_path, **one)
    time.sleep(np.random.default_rng(len(pair)).uniform(0, .1))
    ends = sorted([first.end(), Run(tmp_path, **two).end()] if pair == 'resume and new' else
                  [run.end() for run in (first, Run(tmp_path, **two))])
    assert [code for code, _ in ends] == [0, 2], ends
    assert 'being trained by another process' in ends[1][1] or 'exists: choose another name' in ends[1][1]
    assert_same(saved(tmp_path), alone)


def test_two_without_names(tmp_path, alone):
    "Two new runs in one second have two folders."
    runs = [Run(tmp_path), Run(tmp_path)]
    assert [run.end() for run in runs] == [(0, '')]*2
    names = {path.parent.name for path in (tmp_path/'checkpoints').glob('*/settings.json')} - {'latest'}
    assert len(names) == 2
    for name in names: assert_same(saved(tmp_path, name), alone)
