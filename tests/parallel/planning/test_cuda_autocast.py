"""A CPU's autocast can be made CUDA's."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sslm.parallel.planning.cuda_autocast import cuda_autocast, cuda_fp32


def listed(macro: str) -> set[str]:
    """Return the operations, with their overloads, of a list in the header that torch brings along."""
    text = (Path(torch.__file__).parent / "include/ATen/autocast_mode.h").read_text()
    entries = text.split(f"#define {macro}(_)")[1].split("\n\n")[0]
    return {".".join(re.split(r",\s*", entry)) for entry in re.findall(r"\b_\(([^)]*)\)", entries)}


def test_every_operation_of_cudas_fp32_list_is_fp32_and_no_other() -> None:
    of_cpus = {name.removeprefix("aten::") for name in registered("AutocastCPU")}
    fp32 = listed("AT_FORALL_FP32") | listed("AT_FORALL_FP32_SET_OPT_DTYPE")
    assert len(fp32) > 60
    assert fp32 - of_cpus <= set(cuda_fp32())
    others = {name.partition(".")[0] for name in set(cuda_fp32()) - fp32}
    assert others <= {"norm", "acos"}  # these are entered one by one
    assert not {*listed("AT_FORALL_LOWER_PRECISION_FP"), *listed("AT_FORALL_PROMOTE")} & set(cuda_fp32())


def registered(key: str) -> list[str]:
    return torch._C._dispatch_get_registrations_for_dispatch_key(key)


def dtypes() -> list[torch.dtype]:
    y = torch.ones(4, 8) @ torch.ones(8, 8)

    def all_of(*tensors: Tensor) -> list[torch.dtype]:
        return [tensor.dtype for tensor in tensors]

    return all_of(y, F.gelu(y), y**3, y.softmax(-1), y.sum(), F.layer_norm(y, (8,)), F.normalize(y), y.logsumexp(-1))


def test_powers_softmax_sums_and_norms_are_fp32_as_on_a_gpu_and_the_cpus_autocast_is_left_as_it_was() -> None:
    before = registered("AutocastCPU")
    with torch.autocast("cpu", torch.bfloat16):
        of_cpu = dtypes()
    for dtype in (torch.bfloat16, torch.float16):
        with cuda_autocast(dtype):
            assert dtypes() == [dtype] * 2 + [torch.float32] * 6
    assert registered("AutocastCPU") == before
    with torch.autocast("cpu", torch.bfloat16):
        assert dtypes() == of_cpu == [torch.bfloat16] * 8
