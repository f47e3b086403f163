"""Faults put into trainings: kills, full disks and a second command at random moments. Each training then ends bit for
bit as one that was left alone, or says in one line what is wrong; no file is ever damaged."""
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from text2sign.checkpoint import read_checkpoint
from text2sign.trainer import list_checkpoints

NEEDED = ['text2sign.train', 'text2sign.sample', 'diffusers.schedulers.scheduling_dpmsolver_multistep', 'torch._dynamo',
          'torch.utils.tensorboard', 'names', 'wonderwords', 'psutil', 'pytest']
server = multiprocessing.get_context('forkserver')  # imports everything once, then starts processes in no time
server.set_forkserver_preload(NEEDED)
TINY = dict(stage='both', pretrained='', size=32, words=12, max_letters=2, frames=9, width=32, depth=1, heads=2,
            image_steps=6, steps=12, image_batch=4, batch=2, score_words=0, minutes=0, save_minutes=0, log_every=4,
            device='cpu')


def end_at_write(number, home):
    "Kills this process in the middle of a write: of the so manieth file below `home` that Python opens for it."
    def hook(event, args):
        nonlocal number
        if event != 'open' or 'w' not in str(args[1]) or not str(args[0]).startswith(str(home)): return
        number -= 1
        if number: return
        os.write(os.open(args[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), b'{"half')
        os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)


def command(home, log, settings, file_bytes, kill_at):
    """What `text2sign train` does, in a process of its own: 2 and one line for a mistake. No file gets larger than
    `file_bytes`, as on a disk that is full; at the write number `kill_at` it is killed."""
    import torch

    from text2sign import shards, train
    from text2sign.settings import Settings
    if hasattr(os, 'setpgrp'): os.setpgrp()
    shards.SHARD_BYTES = 2**17                                  # four clips in each of three shards
    train.peak_matmul_flops = lambda *args: 1.                  # how fast the machine is takes time to measure
    os.environ['TEXT2SIGN_HOME'] = str(home/'cache')
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(log, 'w', buffering=1)
    if kill_at: end_at_write(kill_at, home)
    if file_bytes:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
    try: train.train(Settings(**settings), home)
    except (ValueError, OSError) as e:
        print(f'error: {e}')
        sys.exit(2)


class Run:
    "A training in a process of its own."
    count = 0

    def __init__(self, home, file_bytes=0, kill_at=0, **settings):
        Run.count += 1
        home.mkdir(parents=True, exist_ok=True)
        self.log = home.with_name(f'{home.name}-{Run.count}.log')       # not on a disk that is full
        given = settings if 'resume' in settings else TINY | settings
        self.process = server.Process(target=command, args=(home, self.log, given, file_bytes, kill_at))
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
    "Files in the folders of runs and of shards that no run should leave."
    folders = [home/'checkpoints'/'mine', *(home/'cache'/'cache').glob('shards-*')]
    names = {path.name for folder in folders for path in folder.iterdir()}
    return {name for name in names if name.startswith('.') or '.safetensors.' in name} - {'.lock'}


STORES = 'memory', 'shards'                             # where clips are while training


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "What is saved where nothing happens, for clips in memory and in shards; and how many seconds that takes here."
    found = {}
    for store in STORES:
        home, began = tmp_path_factory.mktemp(store), time.time()
        assert Run(home, run='mine', store=store).end() == (0, '')
        found |= {store: saved(home), 'seconds': time.time() - began}       # of the last: the first starts the server
    return found


def assert_as_alone(home, alone, store='memory'):
    "A run goes on to its end, which is that of one that was left alone."
    assert resume_or_begin(home, store=store).end() == (0, '')
    assert_same(saved(home), alone[store])
    assert not leftovers(home)
    for path in (home/'checkpoints'/'mine').iterdir():          # nothing is damaged, read by other programs
        if path.suffix == '.png': Image.open(path).load()
        if path.suffix == '.json': json.loads(path.read_text())


def states(home):
    return {path.name for path in (home/'checkpoints'/'mine').glob('*-state-*.safetensors')}


def finish_or_kill(home, alone, store, times, start):
    "Trainings one after the other, of which so many starts are killed: `start(home)` -> `Run`, which has ended."
    homes = [home/'0']
    while times:
        run = start(homes[-1])
        if run.process.exitcode: times -= 1
        else: homes.append(home/str(len(homes)))                # it has come to its end: the next one
    for home in homes: assert_as_alone(home, alone, store)


@pytest.mark.parametrize('store', STORES)
def test_kills(tmp_path, alone, request, store):
    "6 kills each: half at any moment of a start, half when steps were taken and saved."
    chance = np.random.default_rng(STORES.index(store))
    def start(home):
        before, run, late = states(home), resume_or_begin(home, store=store), chance.random() < .5
        while late and states(home) == before and run.process.is_alive(): time.sleep(.005)
        run.process.join(chance.uniform(0, .1 if late else alone['seconds']/2))
        run.kill()
        assert run.process.exitcode in (0, -signal.SIGKILL)
        return run
    finish_or_kill(tmp_path, alone, store, 30 if request.config.getoption('--slow') else 6, start)


@pytest.mark.parametrize('store', STORES)
def test_kills_while_writing(tmp_path, alone, request, store):
    "6 kills each in the middle of writing a file: words, clips, shards, settings, fingerprints, pictures."
    chance = np.random.default_rng(STORES.index(store))
    def start(home):
        run = resume_or_begin(home, kill_at=int(chance.integers(1, 7)), store=store)
        run.process.join()
        assert run.process.exitcode in (0, -signal.SIGKILL), run.end()
        return run
    finish_or_kill(tmp_path, alone, store, 30 if request.config.getoption('--slow') else 6, start)


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


@pytest.mark.parametrize('store', STORES)
def test_full_disks(tmp_path, alone, request, store):
    "Files cannot grow beyond a random size: a warning about a cache, or one line; then it goes on as if nothing was."
    pytest.importorskip('resource')
    chance, codes = np.random.default_rng(1), []
    for size in 2**chance.uniform(9, 19, 24 if request.config.getoption('--slow') else 5):
        code, error = resume_or_begin(tmp_path, file_bytes=int(size), store=store).end()
        assert code == 0 or 'File too large' in error, error
        codes.append(code)
    assert any(codes)                                   # some file was too large
    assert_as_alone(tmp_path, alone, store)


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


FULL = 'No space left', 'GB are free', 'all of the disk'


@pytest.mark.parametrize('store', STORES)
def test_full_file_system(small_disk, alone, request, store):
    "A disk that is really full, and gets larger from one start to the next."
    disk, grow = small_disk
    sizes, codes = np.random.default_rng(2).uniform(16, 21, 24 if request.config.getoption('--slow') else 5), []
    for size in np.sort(2**sizes).astype(int):
        assert grow(size)
        code, error = resume_or_begin(disk, store=store).end()
        assert code == 0 or any(why in error for why in FULL), error
        codes.append(code)
    assert any(codes)                                   # the disk was full at least once
    assert grow('1g')
    assert_as_alone(disk, alone, store)


@pytest.fixture(scope='module')
def half(tmp_path_factory):
    "A run that was killed in its second stage: a folder to copy."
    home = tmp_path_factory.mktemp('half')
    run = Run(home, run='mine')
    wait(lambda: (home/'checkpoints'/'mine'/'video.safetensors').exists(), run)
    run.kill()
    return home


def test_damaged_files(tmp_path, alone, half):
    "Weights that are no file any more are written again; a state that was removed is not missed, a damaged one is."
    for name in ('video', 'image', 'state'): shutil.copytree(half, tmp_path/name, symlinks=True)
    folders = [tmp_path/name/'checkpoints'/'mine' for name in ('video', 'image', 'state')]
    (folders[0]/'video.safetensors').write_bytes(b'<html>')
    list_checkpoints(folders[1], 'image')[-1].unlink()
    state = list_checkpoints(folders[2], 'video')[-1]
    state.write_bytes(state.read_bytes()[:-9] + b'flipped' + state.read_bytes()[-2:])
    runs = [Run(tmp_path/name, resume='mine') for name in ('video', 'image', 'state')]
    (damaged, why), removed, mended = [run.end() for run in reversed(runs)]
    assert damaged == 2 and 'is damaged: ' in why and 'no other state' in why
    assert removed == mended == (0, '')
    assert_same(saved(tmp_path/'video'), alone['memory'])
    own = {name: tensor for name, tensor in alone['memory'].items() if name.startswith('video')}
    assert_same(saved(tmp_path/'image', stages=['video']), own)


NEW, RESUME, LATEST = dict(run='mine'), dict(resume='mine'), dict(resume='latest')
PAIRS = [(NEW, NEW), (NEW, RESUME), (NEW, LATEST), (RESUME, NEW), (RESUME, RESUME), (RESUME, LATEST), (LATEST, NEW),
         (LATEST, RESUME), (LATEST, LATEST)]
REFUSED = 'being trained by another process', 'exists: choose another name', 'no run named'


@pytest.mark.parametrize('pair', PAIRS, ids=lambda pair: ', '.join(str(how) for how in pair))
def test_two_at_once(tmp_path, alone, half, pair):
    "One of the two trains, the other says in one line why not."
    home, (one, two) = tmp_path/'home', pair
    if 'resume' in one: shutil.copytree(half, home, symlinks=True)
    first = Run(home, **one)
    time.sleep(np.random.default_rng(PAIRS.index(pair)).uniform(0, .3))
    ends = sorted(run.end() for run in (first, Run(home, **two)))
    assert [code for code, _ in ends] == [0, 2] and any(why in ends[1][1] for why in REFUSED), ends
    assert_same(saved(home), alone['memory'])
    assert not leftovers(home)


def test_two_without_names(tmp_path, alone):
    "Two new runs in one second have two folders, and one cache."
    runs = [Run(tmp_path), Run(tmp_path)]
    assert [run.end() for run in runs] == [(0, '')]*2
    names = {path.parent.name for path in (tmp_path/'checkpoints').glob('*/settings.json')} - {'latest'}
    assert len(names) == 2
    for name in names: assert_same(saved(tmp_path, name), alone['memory'])


def test_two_that_write_the_same_shards(tmp_path, alone):
    "One of them writes; the other says in one line that they are being written, and goes on later."
    runs = [Run(tmp_path, run=name, store='shards') for name in ('mine', 'yours')]
    ends = sorted(run.end() for run in runs)
    assert ends[0] == (0, '') and (ends[1] == (0, '') or 'are being written by another process' in ends[1][1]), ends
    for name in ('mine', 'yours'):
        if not (tmp_path/'checkpoints'/name/'settings.json').exists():
            assert Run(tmp_path, run=name, store='shards').end() == (0, '')
        assert_same(saved(tmp_path, name), alone['shards'])
