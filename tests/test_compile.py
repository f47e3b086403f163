"""What takes too long for the notebook that people run."""
from unittest.mock import patch as mock

import torch
from torch import nn

from text2sign.fuse import compile_blocks
from text2sign.video import VideoDiT


def test_many_variants_stay_compiled():
    """Within one process a block meets many sizes, with gradients and without, in fp32 and in bf16.

    At the compiler's usual limit of eight variants it would give up and say so; here that is an error."""
    shape = dict(size=16, patch=8, channels=3, width=16, depth=2, heads=1, classes=3, text_width=16, text_depth=1)
    model = VideoDiT(**shape, learn_sigma=False, qk_norm=True)
    compile_ = nn.Module.compile
    with mock.object(nn.Module, 'compile', lambda m: compile_(m, backend='eager')):
        compile_blocks(model)  # traced, and nothing compiled
    cases = [(bf16, grad, B, T) for bf16 in (False, True) for grad in (True, False)
             for B, T in ((2, 3), (2, 5), (4, 5))]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for bf16, grad, B, T in cases:
            with torch.autocast('cpu', torch.bfloat16, enabled=bf16), torch.set_grad_enabled(grad):
                model(torch.randn(B, T, 3, 16, 16), torch.full((B,), 500.), ['HI']*B)
