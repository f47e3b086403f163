"""Other systems lack some of what Linux has: everything can be imported there, and trained (tested by hiding it)."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
HIDDEN = """
import multiprocessing.synchronize, os, sys
for name in ('resource', 'fcntl', 'triton'): sys.modules[name] = None
for name in ('sched_getaffinity', 'setpgrp', 'sysconf', 'sysconf_names', 'fork'): os.__dict__.pop(name, None)
sys.platform = 'win32'
"""


def run(code, **how):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=HERE, **how)


@pytest.mark.quick
def test_imports_elsewhere():
    "Neither `resource` nor `fcntl` (Windows), `sched_getaffinity` (macOS), `fork`, or triton."
    modules = sorted(path.stem for path in (HERE/'text2sign').glob('[!_]*.py'))
    kernels = {'adaln', 'attention', 'patch_attention', 'place_attention', 'text_attention'}        # need triton
    code = f"import torch, torch._dynamo, timm, cv2, tqdm.auto, filelock{HIDDEN}import importlib\n"
    names = [name for name in modules if name not in kernels]
    code += f"for name in {names}: importlib.import_module('text2sign.' + name)"
    done = run(code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_shared_memory():
    "Without /dev/shm no lock between processes can be made: words are rendered in one process, and a warning says so."
    code = """
import multiprocessing.synchronize
def nothing(*args, **kwargs): raise OSError(38, 'Function not implemented')
multiprocessing.synchronize.SemLock.__init__ = nothing
from text2sign.words import spell
print(len(spell(['HI', 'ZOE'], 14, 32, workers=2, cache=False, progress=False)))
"""
    done = run(code)
    assert done.stdout.split() == ['2'], done.stderr[-2000:]
    assert 'clips are drawn in one process' in done.stderr


def test_kernel_of_another_python(tmp_path):
    "A kernel without the package names its Python."
    import json
    cells = json.loads((HERE/'nbs'/'05_train.ipynb').read_text())['cells']
    source = next(''.join(cell['source']) for cell in cells if cell.get('id') == 'settings-05')
    done = subprocess.run([sys.executable, '-S', '-E', '-c', source], capture_output=True, text=True, cwd=tmp_path)
    assert f'this kernel is the Python {sys.executable}' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize('answers', [False, True], ids=['refuses', 'is silent'])
def test_no_network(answers):
    "No encoder, no VAE: one line that names the folder to give, also where the network never answers."
    code = """
from text2sign.latents import load_vae
from text2sign.text import load_frozen_encoder
for load in (load_frozen_encoder, load_vae):
    try: load('nobody/nothing')
    except (OSError, ValueError) as e: print(e)
"""
    with socket.socket() as hub:
        hub.bind(('127.0.0.1', 0))
        if answers: hub.listen()                                    # takes the call, and says nothing
        address = f'http://127.0.0.1:{hub.getsockname()[1]}'
        env = os.environ | dict(HF_ENDPOINT=address, NO_PROXY='*', no_proxy='*')
        done = run(code, env=env, timeout=240)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all('reached now' in line and 'give a folder' in line for line in lines), done
