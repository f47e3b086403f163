"""*Run All* on a machine without a GPU, as a user does it: papermill, which heeds none of nbdev's flags.

05_train runs this way in test_papermill; all cells of the other notebooks run in test_notebooks."""
import os
from pathlib import Path

import papermill
import pytest
import torch

NBS = Path(__file__).parent.parent/'nbs'


@pytest.mark.parametrize('name', ['index', 'experiments/black_output'])
def test_run_all(name, tmp_path, monkeypatch):
    for variable in ('IN_TEST', 'TEXT2SIGN_SLOW', 'TRITON_INTERPRET', 'PYTEST_CURRENT_TEST'):
        monkeypatch.delenv(variable, raising=False)
    path = (NBS/name).with_suffix('.ipynb')
    threads = str(max(1, min(2, os.cpu_count() or 1)))
    monkeypatch.setenv('OMP_NUM_THREADS', threads)
    if torch.cuda.is_available(): monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    papermill.execute_notebook(path, tmp_path/'out.ipynb', progress_bar=False, cwd=path.parent)
