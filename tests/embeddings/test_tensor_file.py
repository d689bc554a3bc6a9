"""Files of tensors are whole or absent, and neither written nor read through a copy in memory."""

import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from embeddings import tensor_file
from embeddings.tensor_file import write_tensors_


def test_tensors_come_back_whatever_their_layout(tmp_path):
    table = torch.arange(12.0).view(3, 4)
    tensors = {"rows": table[:2], "turned": table[2:].t(), "count": torch.tensor(3)}
    write_tensors_(tmp_path / "t.safetensors", {**tensors, "learns": torch.nn.Parameter(table + 1)})
    found = load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert torch.equal(found["learns"], table + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    path = tmp_path / "t.safetensors"
    write_tensors_(path, {"a": torch.ones(2)})
    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors_(path, {"a": torch.zeros(2)})
    assert torch.equal(load_file(path)["a"], torch.ones(2))


PROGRAM = """
import sys, torch
from pathlib import Path
from embeddings.training_state import read_state, write_state_
from features.peak_memory import peak_bytes

tensors = {"table": torch.ones(50_000_000)}
before = peak_bytes()
write_state_(Path(sys.argv[1]), tensors, {"step": 1})
wrote = peak_bytes() - before
del tensors
tensors, record = read_state(Path(sys.argv[1]))
assert float(tensors["table"][::1000].sum()) == 50_000
tensors["table"][0] = 2
print(wrote, peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_state_is_written_and_read_without_a_copy_of_it(tmp_path):
    asked = [sys.executable, "-c", PROGRAM, str(tmp_path / "state")]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    wrote, both = map(int, done.stdout.split())
    assert wrote < 60_000_000 and both < 60_000_000, "of 200 MB"
