"""Scalars and previews arrive in the trackers themselves, where they are installed: wandb offline, trackio locally.

    pip install -e '.[wandb,trackio]' && pytest tests/test_trackers.py

They are no part of the extra `dev`, as trackio holds Pillow below 13: a job of its own runs this (`ci.yml`)."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
LOSSES = {step: 1/(1 + step) for step in range(0, 12, 2)}
LOG = '''
import sys
from pathlib import Path
import numpy as np
from text2sign.trackers import TrackerLogger
name, folder = sys.argv[1:]
moving = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros((5, 8, 8, 3), np.uint8)
for first in (0, 6):                                                    # a run, and the same run resumed
    logger = TrackerLogger(name, Path(folder)/'mine'/'video', dict(lr=1e-3), first)
    for step in range(first, first + 6, 2):
        previews = [('HI', moving), ('ZOE', moving + np.uint8(step))]
        logger('video', {'step': step, 'val_loss': 1/(1 + step)}, dict(average=previews))
    logger.close(failed=first == 6)
'''


def log_by(name, folder, **env):
    env = os.environ | dict(PYTHONPATH=str(HERE)) | env
    done = subprocess.run([sys.executable, '-c', LOG, name, str(folder)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]


def records(file):
    "Of a .wandb file: LevelDB's log format after 7 bytes, blocks of 32 KiB, records in one or more parts."
    data, at, whole = file.read_bytes(), 7, b''
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7: at += left; continue
        length, kind = int.from_bytes(data[at + 4:at + 6], 'little'), data[at + 6]
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):                                              # all of it, or the last part
            yield whole
            whole = b''


def test_wandb(tmp_path):
    pytest.importorskip('wandb')
    from wandb.proto.wandb_internal_pb2 import Record
    log_by('wandb', tmp_path, WANDB_MODE='offline', WANDB_SILENT='true')
    files = sorted(tmp_path.rglob('run-*.wandb'))
    values, ids, codes = {}, set(), []
    for file in files:
        for data in records(file):
            record = Record.FromString(data)
            if record.run.run_id: ids.add(record.run.run_id)
            if record.HasField('exit'): codes.append(record.exit.exit_code)
            row = {item.key or '/'.join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if 'val_loss' in row: values[record.history.step.num] = row['val_loss']
    assert values == LOSSES
    assert codes == [0, 1]                                              # the second ended with an error
    assert len(files) == 2 and len(ids) == 1                            # two processes of one run
    assert len(list(tmp_path.rglob('media/**/average_*.gif'))) == 6


TRAIN = '''
import sys
from text2sign.settings import Settings
from text2sign.train import train
tiny = dict(stage='image', pretrained='', words=20, size=32, width=48, depth=1, heads=2, image_steps=2)
try: train(Settings(tracker='wandb', **tiny), sys.argv[1])
except ValueError as e: sys.exit(str(e))
'''


@pytest.mark.parametrize('mode', ['online', 'offline'])
def test_a_missing_login_is_told_before_any_work(tmp_path, mode):
    "Online in one line, before data are prepared; offline nothing is missing."
    pytest.importorskip('wandb')
    env = {name: value for name, value in os.environ.items() if not name.startswith('WANDB_')}
    env |= dict(PYTHONPATH=str(HERE), HOME=str(tmp_path), WANDB_MODE=mode, WANDB_SILENT='true')
    done = subprocess.run([sys.executable, '-c', TRAIN, str(tmp_path)], capture_output=True, text=True, env=env,
                          stdin=subprocess.DEVNULL)
    if mode == 'offline': assert (done.returncode, 'Clips:' in done.stdout) == (0, True), done.stderr[-2000:]
    else:
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, '', 1), done.stderr[-2000:]
        assert 'tracker=wandb has no login (No API key configured.' in done.stderr and 'WANDB_API_KEY' in done.stderr


def test_trackio(tmp_path):
    pytest.importorskip('trackio')
    log_by('trackio', tmp_path, TRACKIO_DIR=str(tmp_path/'db'))
    code = ('import json; from trackio.sqlite_storage import SQLiteStorage as s; '
            'print(json.dumps(s.get_logs("text2sign", "mine-video"), default=str))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          env=os.environ | dict(TRACKIO_DIR=str(tmp_path/'db')))
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row['step']: row['val_loss'] for row in rows if 'val_loss' in row} == LOSSES
    assert len(list((tmp_path/'db').rglob('*.gif'))) == 6
