"""Memory that a run takes, and that the machine has."""

from __future__ import annotations

import pytest
import torch

from vqvdm.memory import available_memory, peak_memory

CPU = torch.device("cpu")


def test_peak_memory_is_that_of_the_run():
    found = peak_memory(lambda: torch.ones(25_000_000).add(1), CPU)
    if found is None:
        pytest.skip("this system does not tell")
    assert found == pytest.approx(2e8, rel=0.2)
    again = peak_memory(lambda: torch.ones(25_000_000).add(1), CPU)  # what was freed meanwhile does not hide it
    assert again == pytest.approx(2e8, rel=0.2)


def test_available_memory_is_the_machines_or_the_containers(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    assert available_memory(CPU, tmp_path, tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1500\n")
    (tmp_path / "memory.stat").write_text("file 900\ninactive_file 500\n")  # what can be taken back
    assert available_memory(CPU, tmp_path, tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("500000\n")
    assert available_memory(CPU, tmp_path, tmp_path) == 499_000
    assert available_memory(CPU, tmp_path / "absent") is None
