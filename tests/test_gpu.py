"""What only a GPU can show: `pytest --cuda`."""
import os
import shutil

import numpy as np
import pytest
import torch

from text2sign.batches import Batches
from text2sign.clips import Clips
from text2sign.diffusion import Flow, get_objective
from text2sign.fuse import why_not_compiled
from text2sign.speed import find_memory_settings, warm_up
from text2sign.trainer import Recipe, Trainer, ValLoss
from text2sign.video import VideoDiT
from text2sign.words import spell


@pytest.fixture(autouse=True)
def gpu(pytestconfig):
    if not pytestconfig.getoption('--cuda'): pytest.skip('needs a GPU: pytest --cuda')


def small_model(width=64, depth=2, heads=2, size=32):
    torch.manual_seed(0)
    shape = dict(size=size, patch=8, channels=3, width=width, depth=depth, heads=heads, classes=27)
    return VideoDiT(**shape, learn_sigma=False, qk_norm=True).cuda()


def four_words():
    return spell(['HI', 'ZOE', 'CAB', 'JO'], frames=14, size=32, progress=False)


def distance(a, b):  # of two lists of parameters
    return (sum((p - q).pow(2).sum() for p, q in zip(a, b))**.5).item()


def test_memory_that_fits():
    "Memory that other tensors hold is found missing, and what the search names does fit."
    frames = np.random.default_rng(0).integers(0, 255, (64, 32, 64, 64, 3), dtype=np.uint8)
    model = small_model(width=384, depth=8, heads=6, size=64)
    tr = Trainer(model, Flow(), Recipe(steps=2, lr=1e-4, precision='bf16'))
    batches = Batches(Clips(frames, ['HELLO']*64), False, 64, device='cuda')
    left = 6*2**30
    taken = torch.empty(torch.cuda.mem_get_info()[0] - left, dtype=torch.uint8, device='cuda')
    tr.recipe = find_memory_settings(tr, batches)
    assert tr.recipe.accumulation > 1
    for _ in range(2): row = tr.train_step(batches)
    assert row['loss'].isfinite()
    del taken


@pytest.mark.parametrize('how', [
    dict(), dict(accumulation=2), dict(precision='bf16'), dict(precision='bf16', frame_chunk=5),
    dict(precision='bf16', objective='epsilon')], ids=str)
def test_graphed_step_on_gpu(how):
    "Fused, compiled and, where that is possible, captured as a graph, a step is the step it was."
    how = dict(how)
    objective = get_objective(how.pop('objective', 'flow'), False)
    batches = Batches(four_words(), False, 4, drop=0.2, device='cuda')
    plain, fast = (Trainer(small_model(), objective, Recipe(steps=6, lr=1e-3, **how)) for _ in range(2))
    warm_up(fast, batches)
    start = [p.detach().clone() for p in plain.params.values()]
    assert bool(fast.graph) == ('frame_chunk' not in how)
    for name, p in fast.params.items(): assert torch.equal(p, plain.params[name]) and p.grad is None, name
    for _ in range(4):
        a, b = plain.train_step(batches), fast.train_step(batches)
        for k in a: torch.testing.assert_close(a[k], b[k], rtol=2e-2, atol=1e-3)
    moved = distance(plain.params.values(), start)
    assert distance(plain.params.values(), fast.params.values()) < 0.3*moved  # one that stood still: a whole `moved`


def test_without_a_compiler_on_gpu(monkeypatch, capsys):
    "A machine without a compiler trains the plain model, still as a graph, and says so in one line."
    batches = Batches(four_words(), False, 4, drop=0.2, device='cuda')
    plain, bare = (Trainer(small_model(), Flow(), Recipe(steps=6, lr=1e-3)) for _ in range(2))
    for name in ('PATH', 'CC', 'CXX'): monkeypatch.setitem(os.environ, name, '')
    why_not_compiled.cache_clear()
    warm_up(bare, batches)
    why_not_compiled.cache_clear()
    assert capsys.readouterr().out == 'not compiled, so training is slower: no C compiler was found (install gcc)\n'
    assert bare.graph
    for _ in range(2):
        torch.testing.assert_close(plain.train_step(batches)['loss'], bare.train_step(batches)['loss'])


def test_resumed_on_gpu(tmp_path):
    """A run in two calls ends where one in a single call does, up to what two equal runs differ by.

    One that has forgotten its moments does not."""
    from text2sign.train import fit
    clips = four_words()
    batches = Batches(clips, False, 4, drop=0.2, device='cuda')
    val_loss = ValLoss(Batches(clips, False, 4, drop=0., device='cuda'), Flow())

    def run(name, resume=False, forget=False, **how):
        tr = Trainer(small_model(), Flow(), Recipe(steps=12, lr=1e-3, warmup=1, precision='bf16'))
        if resume: tr.resume(tmp_path/name, 'video')
        if forget: tr.optimizer.state.clear()
        fit(tr, batches, val_loss, tmp_path/name, 'video', save_minutes=0., **how)
        return tr

    def apart(a, b): return sum((p - b.params[k]).abs().sum().item() for k, p in a.params.items())

    whole, again = run('whole'), run('again')
    stopped = run('two', minutes=1e-9)
    assert stopped.step == 1
    shutil.copytree(tmp_path/'two', tmp_path/'three')
    resumed, forgetful = run('two', resume=True), run('three', resume=True, forget=True)
    assert resumed.step == 12
    assert apart(whole, resumed) <= 3*apart(whole, again) + 1e-3
    assert apart(whole, forgetful) > 10*apart(whole, resumed)
