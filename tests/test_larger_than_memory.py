"""A set of clips in shards that is larger than the memory that training takes: what is held is counted, not assumed."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
GIB = float(os.environ.get('TEXT2SIGN_STORED_GIB', 1))                  # of the set; more to try it in earnest
TRAIN = '''
import json, sys, threading, time
import numpy as np, torch
from text2sign.batches import Batches
from text2sign.clips import Clips
from text2sign.diffusion import get_objective
from text2sign.shards import open_shards, write_shards
from text2sign.trainer import Recipe, Trainer
from text2sign.video import VideoDiT

folder, gib = sys.argv[1], float(sys.argv[2])
EACH, SHARD = 24*64*64*3, 256                                           # bytes of a clip; clips of a shard
shards = round(gib*2**30/(EACH*SHARD))

def held():
    "Bytes of this process that are no pages of files (those the kernel drops when it needs room)."
    return 1024*int(next(line for line in open('/proc/self/status') if line.startswith('RssAnon')).split()[1])

def make(k):
    frames = np.random.default_rng(k).integers(0, 256, (SHARD, 24, 64, 64, 3), np.uint8)
    return Clips(frames, [f'clip {k} {i}' for i in range(SHARD)]), {}

write_shards(folder, shards, make, progress=False)
model = VideoDiT(size=64, patch=32, channels=3, width=32, depth=1, heads=1, classes=1, learn_sigma=False)
trainer = Trainer(model, get_objective('flow'), Recipe(steps=10**6, lr=1e-4))
few = Batches(make(0)[0][:16], False, 16)
for _ in range(3): trainer.train_step(few)                             # what the program itself takes
trainer.step = 0
before, most, done = held(), 0, False                                  # nothing of the set is read yet
def watch():
    global most
    while not done: most = max(most, held()); time.sleep(.01)
watcher = threading.Thread(target=watch, daemon=True); watcher.start()  # ends with the program, also with an error
clips, _ = open_shards(folder)
batches = Batches(clips, False, 16)
read = set()
def step():
    i = trainer.step
    trainer.train_step(batches)
    read.update(batches.items(i).tolist())
while len(read) < len(clips): step()                                    # an epoch: each clip is read
done = True; watcher.join()
print(json.dumps(dict(set=shards*SHARD*EACH, before=before, most=most, clips=len(read), steps=trainer.step)))
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='counts pages as Linux does')
def test_memory_does_not_grow_with_the_set(tmp_path):
    "A whole epoch is read; what is held meanwhile is a small part of the set, whatever its size."
    env = os.environ | dict(PYTHONPATH=str(HERE), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-c', TRAIN, str(tmp_path/'set'), str(GIB)], capture_output=True, text=True,
                          env=env, timeout=600*max(1, GIB))
    assert done.returncode == 0, done.stderr[-2000:]
    held = json.loads(done.stdout.splitlines()[-1])
    print(held)
    assert held['set'] > .9*GIB*2**30
    assert held['most'] - held['before'] < 2**29                        # what is read ahead, and no more
    if GIB >= 4: assert held['most'] < held['set']/2                    # the program itself takes up to 1 GB
