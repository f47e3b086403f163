"""What only a GPU can show: `pytest --cuda`."""
import shutil

import numpy as np
import pytest
import torch

from text2sign.corpus import Clips, spell
from text2sign.diffusion import Flow, objective
from text2sign.dit import VideoDiT
from text2sign.train import Batches, HeldOut, Recipe, Trainer, fit, warm_up, what_fits


@pytest.fixture(autouse=True)
def gpu(pytestconfig):
    if not pytestconfig.getoption('--cuda'): pytest.skip('needs a GPU: pytest --cuda')


def test_memory_that_fits():
    "Memory that other tensors hold is found missing, and what the search names does fit."
    torch.manual_seed(0)
    model = VideoDiT(size=64, patch=8, channels=3, width=384, depth=8, heads=6, classes=27, learn_sigma=False, qk_norm=True).cuda()
    clips = Clips(np.random.default_rng(0).integers(0, 255, (64, 32, 64, 64, 3), dtype=np.uint8), ['HELLO']*64)
    tr, batches = Trainer(model, Flow(), Recipe(steps=2, lr=1e-4, precision='bf16')), Batches(clips, False, 64, device='cuda')
    taken = torch.empty(torch.cuda.mem_get_info()[0] - 6*2**30, dtype=torch.uint8, device='cuda')            # leaves 6 GiB
    tr.recipe = what_fits(tr, batches)
    assert tr.recipe.accumulation > 1
    for _ in range(2): row = tr.train_step(batches)
    assert row['loss'].isfinite()
    del taken


@pytest.mark.parametrize('how', [dict(), dict(accumulation=2), dict(precision='bf16'), dict(precision='bf16', frame_chunk=5), dict(precision='bf16', objective='epsilon')], ids=str)
def test_recorded_step_on_gpu(how):
    "Compiled and, where that is possible, recorded as a graph, a step is the step it was."
    batches, how = Batches(spell(['HI', 'ZOE', 'CAB', 'JO'], frames=14, size=32, progress=False), False, 4, drop=0.2, device='cuda'), dict(how)
    path = objective(how.pop('objective', 'flow'))
    def trainer():
        torch.manual_seed(0)
        model = VideoDiT(size=32, patch=8, channels=3, width=64, depth=2, heads=2, classes=27, learn_sigma=False, qk_norm=True).cuda()
        return Trainer(model, path, Recipe(steps=6, lr=1e-3, **how))
    plain, fast = trainer(), trainer()
    warm_up(fast, batches)
    start = [p.detach().clone() for p in plain.params.values()]
    assert bool(fast.recorded) == ('frame_chunk' not in how)
    for (k, p), q in zip(plain.params.items(), fast.params.values()): assert torch.equal(p, q) and q.grad is None, k
    for _ in range(4):
        a, b = (t.train_step(batches) for t in (plain, fast))
        for k in a: torch.testing.assert_close(a[k], b[k], rtol=2e-2, atol=1e-3)
    moved, apart = ((sum((a - b).pow(2).sum() for a, b in zip(one, other))**.5).item() for one, other in ((plain.params.values(), start), (plain.params.values(), fast.params.values())))
    assert apart < 0.3*moved                                                    # one that stood still would be a whole `moved` apart


def test_resumed_on_gpu(tmp_path):
    "A run in two calls ends where one in a single call does, up to what two equal runs differ by; one that has forgotten its moments does not."
    clips = spell(['HI', 'ZOE', 'CAB', 'JO'], frames=14, size=32, progress=False)
    batches, held_out = Batches(clips, False, 4, drop=0.2, device='cuda'), HeldOut(Batches(clips, False, 4, drop=0., device='cuda'), Flow())
    def run(name, resume=False, forget=False, **how):
        torch.manual_seed(0)
        model = VideoDiT(size=32, patch=8, channels=3, width=64, depth=2, heads=2, classes=27, learn_sigma=False, qk_norm=True).cuda()
        tr = Trainer(model, Flow(), Recipe(steps=12, lr=1e-3, warmup=1, precision='bf16'))
        if resume: tr.resume(tmp_path/name, 'video')
        if forget: tr.optimizer.state.clear()
        fit(tr, batches, held_out, tmp_path/name, 'video', save_minutes=0., **how)
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
