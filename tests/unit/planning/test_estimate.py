"""What a pack may take of a machine."""

from lorastudy.planning import estimate
from lorastudy.planning.estimate import Machine


def test_workers_of_a_cpu_share_its_memory_and_each_gpu_has_its_own(monkeypatch):
    monkeypatch.setattr(estimate, "physical_memory", lambda: 20 << 30)
    cpu = Machine(device="cpu", device_name="", num_threads=1, memory_bytes=None)
    # 90 % of 20 GiB, for each of the workers, less 600 MiB for the process, of which tensors get half
    assert cpu.budget_bytes(num_workers=1) == ((18 << 30) - (600 << 20)) // 2
    assert cpu.budget_bytes(num_workers=2) == ((9 << 30) - (600 << 20)) // 2
    gpu = Machine(device="cuda", device_name="", num_threads=1, memory_bytes=1000)
    assert gpu.budget_bytes(num_workers=1) == gpu.budget_bytes(num_workers=4) == 900
    monkeypatch.setattr(estimate, "physical_memory", lambda: None)
    assert cpu.budget_bytes(num_workers=1) is None
