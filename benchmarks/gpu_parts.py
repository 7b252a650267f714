"""The parts of `gpu.py`: each does its runs in a lab, and returns what it found, or raises `Wrong` with it."""

import json
import os
import signal
import statistics
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_models import DTYPES, NARROW, NO_LOSS_SCALING, OBJECTIVES, REAL, SHORT, STRATEGIES
from lab import Facts, Lab, Wrong, plainly
from torch import nn
from watch import Matmuls, NoWaits, Peak, Plan, trainer_callback

import sslm
from sslm.cli.ckpt import diff
from sslm.runs.checkpoints.folder import newest_first
from sslm.system.exits import STOPPED, USER_ERROR

PACKAGES = ("torch", "transformers", "lightning", "deepspeed", "numpy", "tokenizers")


def machine(lab: Lab) -> Facts:
    """Versions, the device, and which attention kernel torch takes for what."""
    return dict(lab.fork("machine", look_at_machine).wait().found)


def look_at_machine() -> Facts:
    properties = torch.cuda.get_device_properties(0)
    return {
        "python": sys.version.split()[0],
        "sslm": sslm.__version__,
        **{name: metadata.version(name) if find_spec(name) else "not installed" for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": properties.name,
        "gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "attention": attention_kernels(),
    }


def attention_kernels() -> dict[str, str]:
    """The kernel that scaled_dot_product_attention takes: for causal attention, with a mask, with dropout, in fp32."""
    query = torch.zeros(2, 8, 256, 64, device="cuda", dtype=torch.bfloat16)
    mask = torch.ones(2, 1, 256, 256, device="cuda", dtype=torch.bool)

    def kernel(tensor: torch.Tensor, mask: torch.Tensor | None, dropout: float, is_causal: bool) -> str:
        chosen = torch._fused_sdp_choice(tensor, tensor, tensor, mask, dropout, is_causal)
        return {int(backend): name for name, backend in nn.attention.SDPBackend.__members__.items()}[chosen]

    return {
        "causal": kernel(query, None, 0.0, True),
        "masked": kernel(query, mask, 0.0, False),
        "dropout": kernel(query, None, 0.1, True),
        "fp32": kernel(query.float(), None, 0.0, True),
    }


def parity(lab: Lab) -> Facts:
    """Losses in fp32 are the CPU's, for each objective, the LSTM and document masks."""
    flags = f"{SHORT} --max_steps 6 --precision 32 --strategy single"
    runs = {
        name: [lab.train(f"{name} {kind}", flags, model, f"--accelerator {kind}") for kind in ("gpu", "cpu")]
        for name, model in list(OBJECTIVES.items())[:: lab.sizes.every]
    }
    facts = {}
    for name, (gpu, cpu) in runs.items():
        pairs = zip(gpu.wait().losses, cpu.wait().losses, strict=True)
        facts[name] = max(abs(ours - exact) for ours, exact in pairs)
    wrong = [name for name, difference in facts.items() if not difference < 1e-3]
    if wrong:
        raise Wrong(f"losses are not the CPU's: {', '.join(wrong)}", facts)
    return {"largest_difference": facts}


def waits(lab: Lab) -> Facts:
    """Between logged steps the host never waits for the device (torch.cuda.set_sync_debug_mode)."""
    flags = f"{SHORT} --max_steps 16 --log_every 100 --precision bf16-mixed --strategy single --accelerator gpu"
    cases = list(OBJECTIVES.items())[:: lab.sizes.every]
    runs = {name: lab.train(f"waits {name}", flags, model, watch=without_waits) for name, model in cases}
    facts = {}
    for name, run in runs.items():
        try:
            run.wait()
            facts[name] = "none"
        except Wrong as wrong:
            facts[name] = str(wrong)
    if any(said != "none" for said in facts.values()):
        raise Wrong("the host waits", facts)
    return facts


def dtypes(lab: Lab) -> Facts:
    """The dtype that the blocks' matmuls see, for every strategy and precision."""
    flags = f"{SHORT} {NARROW} --max_steps 3 --accelerator gpu"
    pairs = [(s, p) for p in DTYPES for s in STRATEGIES if (s in NO_LOSS_SCALING, p) != (True, "16-mixed")]
    facts, wrong = {}, []
    runs = {}
    for strategy, precision in pairs[:: lab.sizes.every]:
        key, more = f"{strategy} {precision}", f"--strategy {strategy} --precision {precision}"
        if strategy.startswith("deepspeed") and not find_spec("deepspeed"):
            facts[key] = "DeepSpeed is not installed"
        else:
            runs[key, precision] = lab.train(key, flags, more, watch=with_dtypes)
    for (key, precision), run in runs.items():
        try:
            facts[key] = " ".join(run.wait().found)
        except Wrong as failed:
            facts[key] = str(failed)
        if facts[key] != DTYPES[precision]:
            wrong.append(key)
    if wrong:
        raise Wrong(f"other dtypes than asked for: {', '.join(wrong)}", facts)
    return facts


def resume(lab: Lab) -> Facts:
    """A run that is stopped and resumed is the one that was not, bit by bit."""
    flags = f"{SHORT} {NARROW} --max_steps 8 --precision bf16-mixed --strategy single --accelerator gpu"
    whole = lab.train("whole", flags)
    lab.train("parted", flags, "--stop_after 4steps").wait(STOPPED)
    parted = lab.train("parted", flags).wait()
    whole.wait()
    newest = [newest_first(run.folder / "run/checkpoints")[0] for run in (whole, parted)]
    differences = diff.compare(*newest)
    facts = {
        "losses_equal": whole.losses == parted.losses,
        "tensors_that_differ": [str(value) for value in differences.values[:5]],
    }
    if not facts["losses_equal"] or differences.any:
        raise Wrong("the resumed run is another", facts)
    return facts


def recomputation(lab: Lab) -> Facts:
    """With dropout, recomputed activations are those of the forward pass: the gradient norms are the same."""
    bert = f"--objective masked_lm --model.model_type bert {NARROW}"
    flags = f"{SHORT} {bert} --max_steps 4 --precision bf16-mixed --strategy single --accelerator gpu"
    kept = lab.train("kept", flags)
    again = lab.train("recomputed", flags, "--activation_checkpointing full").wait()
    pairs = zip(kept.wait().numbers("grad_norm"), again.numbers("grad_norm"), strict=True)
    largest = max(abs(ours - exact) / exact for exact, ours in pairs)
    if not largest < 0.02:
        raise Wrong("gradient norms differ", {"largest_relative_difference": largest})
    return {"largest_relative_difference": largest}


def memory(lab: Lab) -> Facts:
    """The allocator's peak beside the plan, at real sizes."""
    flags = (
        "--data.tokenizer bpe:512 --batch_size 16 --micro_batch_size 8 --max_steps 3 --log_every 1000 --val_every 1000 "
        "--data.val_sequences 1 --checkpoint.every_steps 1000 --devices 1 --precision bf16-mixed --strategy single "
        "--accelerator gpu --compile off"
    )
    facts: Facts = {}
    off = []
    for family, model in list(lab.sizes.families.items())[:: lab.sizes.every]:
        try:
            found = lab.train(f"memory {family}", flags, model, watch=with_peak).wait().found
        except Wrong as failed:
            facts[family] = str(failed)
            off.append(family)
            continue
        ratio = found["planned"] / found["peak"]
        facts[family] = {name: round(size / 2**30, 3) for name, size in found.items()} | {"ratio": round(ratio, 3)}
        if abs(ratio - 1) > 0.08 and lab.sizes is REAL:  # of a tiny model the allocator's rounding is the most
            off.append(family)
    if off:
        raise Wrong(f"the plan is off by more than 8 %: {', '.join(off)}", facts)
    return facts


def speed(lab: Lab, name: str, *flags: str) -> Facts:
    """Tokens a second, model FLOPs utilisation and the wait for data, in the second half of a run."""
    number = lab.sizes.num_steps
    timing = f"--max_steps {number} --log_every 2 --val_every 1000 --data.val_sequences 1 --logger none"
    rest = "--checkpoint.every_steps 1000 --optim.warmup_steps 2 --devices 1 --accelerator gpu"
    run = lab.train(name, *flags, timing, rest, copies=lab.sizes.copies).wait()
    late = run.rows[len(run.rows) // 2 :]
    return {
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in late),
        "mfu": statistics.median(row["mfu"] or 0.0 for row in late),
        "data_wait": statistics.median(row["data_wait"] for row in late),
        "loss": [run.losses[0], run.losses[-1]],
    }


def gpt2(lab: Lab) -> Facts:
    """Speed of GPT-2 of 124M parameters, compiled, in bf16-mixed."""
    return speed(lab, "gpt2", lab.sizes.gpt2, "--strategy single --precision bf16-mixed --compile model")


def gpt2_fp8(lab: Lab) -> Facts:
    """Speed of the same with fp8 matmuls."""
    return speed(lab, "gpt2 fp8", lab.sizes.gpt2, "--strategy single --precision fp8 --compile model")


def llama_fsdp(lab: Lab) -> Facts:
    """Speed of a Llama of 300M parameters, compiled, with FSDP2 in bf16-mixed."""
    return speed(lab, "llama fsdp", lab.sizes.llama, "--strategy fsdp --precision bf16-mixed --compile block")


def out_of_memory(lab: Lab) -> Facts:
    """A device whose memory others take ends the run with 2 and a sentence."""
    flags = f"{SHORT} {NARROW} --model.vocab_size 8192 --max_steps 2 --strategy single --accelerator gpu"
    run = lab.train("out of memory", flags, watch=with_little_memory).wait(USER_ERROR)
    if "out of memory" not in run.last_line or "Traceback" in run.said:
        raise Wrong(f"it is not told: {run.last_line}")
    return {"said": run.last_line}


def sigterm(lab: Lab) -> Facts:
    """A run that is told to stop saves itself, exits with 75, and goes on to its end."""
    flags = f"{SHORT} {NARROW} --strategy single --accelerator gpu"
    run = lab.train("sigterm", flags, "--max_steps 100000")
    while len(run.rows) < 3 and run.is_running:
        time.sleep(0.05)
    began = time.monotonic()
    if run.is_running:
        os.kill(run.pid, signal.SIGTERM)
    run.wait(STOPPED)
    seconds, step = time.monotonic() - began, len(run.rows)
    lab.train("sigterm", flags, f"--max_steps {step + 3}").wait()
    if len(run.rows) != step + 3:
        raise Wrong(f"after {step} steps it went on to {len(run.rows)}, not {step + 3}")
    return {"seconds_to_stop": round(seconds, 2), "stopped_at": step}


# ------------------------------------------------------------------------------------------------ in the forked process


def with_dtypes(arguments: list[str]) -> dict[str, int]:
    with Matmuls() as seen:
        plainly(arguments)
    return dict(seen.dtypes)


def without_waits(arguments: list[str]) -> None:
    with trainer_callback(NoWaits()):
        plainly(arguments)


def with_peak(arguments: list[str]) -> None:
    """Train two steps, note what was planned and what the allocator took in the second, and save nothing."""
    plan, folder = Plan(), Path(arguments[arguments.index("--run_dir") + 1]).parent

    def leave(peak: int) -> None:
        (folder / "found.json").write_text(json.dumps({"planned": sum(plan.parts.values()), "peak": peak}))
        os._exit(0)

    with plan.noting(), trainer_callback(Peak(leave)):
        plainly(arguments)


def with_little_memory(arguments: list[str]) -> None:
    """Train when others have taken nearly all of the device's memory, which no plan can know of."""
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - (8 << 20), dtype=torch.uint8, device="cuda")
    plainly(arguments)
    del taken
