"""What one GPU tells of sslm in ten minutes: whether it is right, whether it waits, what it takes, how fast it is.

    python benchmarks/gpu.py --minutes 9 --out benchmarks/results/gpu.jsonl
    python benchmarks/gpu.py --only machine,parity,waits

The parts stand in order of their value; each has a limit of its own and ends with a line of JSON, so that whatever time
cuts short, the rest is kept. One process imports everything, and each run is a fork of it: what hangs is killed, and
what breaks a device breaks none of the next runs. The process itself never touches the GPU.
"""

import os

os.environ.setdefault("DS_ACCELERATOR", "cuda")  # or DeepSpeed asks CUDA when it is imported, and no fork could

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import nn
from watch import Matmuls, NoWaits, Peak, Plan, trainer_callback

import sslm
import sslm.cli.train
from sslm.cli.ckpt import diff
from sslm.runs.checkpoints.folder import newest_first
from sslm.system.exits import STOPPED, USER_ERROR
from sslm.train import main as train

for family in ("llama", "gpt2", "bert", "modernbert", "t5", "bart"):
    import_module(f"transformers.models.{family}.modeling_{family}")
if find_spec("deepspeed"):
    import_module("deepspeed")

ROOT = Path(__file__).resolve().parent.parent
RESERVE_SECONDS = 3.0
"""Kept for the summary."""
PACKAGES = ("torch", "transformers", "lightning", "deepspeed", "numpy", "tokenizers")
Facts = dict[str, Any]

SMALL = "--data.tokenizer bpe:512 --optim.warmup_steps 2 --log_every 1 --checkpoint.every_steps 1000 --devices 1"
SHORT = f"{SMALL} --seq_len 64 --batch_size 8 --micro_batch_size 4 --data.val_sequences 8 --val_every 1000"
NARROW = (
    "--model.hidden_size 64 --model.intermediate_size 128 --model.num_hidden_layers 2 --model.num_attention_heads 2"
)
OBJECTIVES = {
    "causal_lm": NARROW,
    "causal_lm, LSTM": "--model.model_type sslm_lstm --model.hidden_size 64",
    "causal_lm, document masks": f"{NARROW} --data.packing best_fit --data.document_mask true",
    "masked_lm": f"--objective masked_lm {NARROW}",
    "span_corruption": "--objective span_corruption --model.dropout_rate 0 --model.d_model 64 --model.d_kv 32 "
    "--model.d_ff 128 --model.num_layers 2 --model.num_heads 2",
    "denoising": "--objective denoising --model.dropout 0 --model.d_model 64 --model.encoder_layers 2 "
    "--model.decoder_layers 2 --model.encoder_ffn_dim 128 --model.decoder_ffn_dim 128 "
    "--model.encoder_attention_heads 2 --model.decoder_attention_heads 2",
    "token_order": f"--objective token_order {NARROW}",
}
DTYPES = {
    "32": "float32",
    "bf16-mixed": "bfloat16",
    "bf16-true": "bfloat16",
    "16-mixed": "float16",
    "fp8": "float8_e4m3fn",
}
STRATEGIES = ("single", "ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
NO_LOSS_SCALING = ("fsdp",)
"""Strategies that refuse 16-mixed."""


@dataclass(frozen=True)
class Sizes:
    """Models and lengths of the parts that need real ones."""

    gpt2: str
    llama: str
    families: dict[str, str]
    num_steps: int
    """Of a timed run."""
    copies: int
    """Of the text that a timed run reads."""
    every: int
    """Of the cases of waits and dtypes, each one, or each second, third …"""


FAMILIES = {
    "gpt2": "--model.model_type gpt2 --model.vocab_size 50304 --seq_len 1024",
    "llama": "--model.model_type llama --model.hidden_size 1024 --model.intermediate_size 2816 "
    "--model.num_hidden_layers 20 --model.num_attention_heads 8 --model.vocab_size 32000 --seq_len 2048",
    "modernbert": "--objective masked_lm --model.model_type modernbert --model.hidden_size 768 "
    "--model.intermediate_size 1152 --model.num_hidden_layers 22 --model.num_attention_heads 12 "
    "--model.vocab_size 50368 --seq_len 512",
    "t5": "--objective span_corruption --model.model_type t5 --model.d_model 768 --model.d_kv 64 --model.d_ff 2048 "
    "--model.num_layers 12 --model.num_heads 12 --model.vocab_size 32128 --seq_len 512",
    "bart": "--objective denoising --model.model_type bart --model.d_model 768 --model.encoder_layers 6 "
    "--model.decoder_layers 6 --model.encoder_ffn_dim 3072 --model.decoder_ffn_dim 3072 "
    "--model.encoder_attention_heads 12 --model.decoder_attention_heads 12 --model.vocab_size 50265 --seq_len 512",
}
"""Models of real size, whose llama has 300M parameters."""
SHRUNK = {
    "gpt2": "--model.n_embd 64 --model.n_layer 2 --model.n_head 2 --model.vocab_size 640 --seq_len 64",
    "llama": f"{NARROW} --model.vocab_size 640 --seq_len 64",
    "modernbert": f"{NARROW} --model.vocab_size 640 --seq_len 64",
    "t5": "--model.d_model 64 --model.d_ff 128 --model.num_layers 2 --model.num_heads 2 --model.vocab_size 640 "
    "--seq_len 64",
    "bart": "--model.d_model 64 --model.encoder_layers 2 --model.decoder_layers 2 --model.encoder_ffn_dim 128 "
    "--model.decoder_ffn_dim 128 --model.encoder_attention_heads 2 --model.decoder_attention_heads 2 "
    "--model.vocab_size 640 --seq_len 64",
}
"""What --tiny makes of them; of two flags the last counts."""
REAL = Sizes(
    gpt2=f"--config {ROOT}/configs/gpt2-124m.yaml --data.tokenizer bpe:4096 --batch_size 64 --micro_batch_size 16",
    llama=f"{FAMILIES['llama']} --data.tokenizer bpe:4096 --batch_size 32 --micro_batch_size 8",
    families=FAMILIES,
    num_steps=40,
    copies=20,
    every=1,
)
TINY_BATCH = "--batch_size 4 --micro_batch_size 2 --data.tokenizer bpe:512"
TINY = Sizes(
    gpt2=f"{REAL.gpt2} {SHRUNK['gpt2']} {TINY_BATCH}",
    llama=f"{REAL.llama} {SHRUNK['llama']} {TINY_BATCH}",
    families={name: f"{flags} {SHRUNK[name]}" for name, flags in FAMILIES.items()},
    num_steps=8,
    copies=1,
    every=5,
)


class Wrong(Exception):
    """A part's check does not hold. What was found so far stays in its facts."""

    def __init__(self, why: str, facts: Facts | None = None) -> None:
        super().__init__(why)
        self.facts = facts or {}


class Late(Exception):
    """A part's time is over."""


# ------------------------------------------------------------------------------------------------ forked runs


@dataclass
class Run:
    """A function in a forked process of its own, which writes what it found as JSON."""

    folder: Path
    pid: int
    deadline: float
    code: int | None = None

    @property
    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return (self.said.strip().splitlines() or ["nothing"])[-1][:400]

    @property
    def found(self) -> Any:
        """What the function returned."""
        return json.loads((self.folder / "found.json").read_text())

    @property
    def rows(self) -> list[Facts]:
        file = self.folder / "run/metrics.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [row for row in map(json.loads, lines) if "train/loss" in row]

    def numbers(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]

    @property
    def losses(self) -> list[float]:
        return self.numbers("train/loss")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; past its time it is killed."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        if self.code is None and time.monotonic() > self.deadline:
            self.kill()
            raise Late(f"{self.folder.name} took too long; it had said: {self.last_line}")
        return self.code is None

    def wait(self, code: int = 0) -> "Run":
        """Wait for its end, which must have this exit code."""
        while self.is_running:
            time.sleep(0.02)
        if self.code != code:
            raise Wrong(f"{self.folder.name} ended with {self.code}, not {code}: {self.last_line}")
        return self

    def kill(self) -> None:
        if self.code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.code = -signal.SIGKILL


@dataclass
class Lab:
    """Where runs are forked, within a part's time."""

    folder: Path
    sizes: Sizes
    deadline: float = 0.0
    started: list[Run] = field(default_factory=list)

    def fork(self, name: str, function: Callable[[], Any], folder: Path | None = None) -> Run:
        """Start a function in a process of its own; it exits with 0, or with the code that SystemExit brings.

        Half as many run at a time as there are cores.
        """
        while sum(run.is_running for run in self.started) >= max((os.cpu_count() or 1) // 2, 1):
            time.sleep(0.02)
        folder = folder or self.folder / name.replace(" ", "-").replace(",", "")
        folder.mkdir(exist_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _work(folder, function)
        self.started.append(Run(folder, pid, self.deadline))
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        return self.started[-1]

    def text(self, copies: int = 1) -> Path:
        """A file with Python's documentation, so many times, in documents that a line of dashes ends."""
        file = self.folder / f"text-{copies}.txt"
        if not file.is_file():
            file.write_text("\n-----\n".join(topics[name] for name in sorted(topics) * copies))
        return file

    def train(self, name: str, *flags: str, copies: int = 1, watch: "Watch | None" = None) -> Run:
        """Start `sslm train` on so many copies of the text; `watch` wraps it, and says what it found."""
        folder = self.folder / name.replace(" ", "-").replace(",", "")
        always = f"--run_dir {folder}/run --data.cache_dir {self.folder}/cache --data.train {self.text(copies)}"
        arguments = [*f"{' '.join(flags)} {always}".split(), "--data.document_separator", "\n-----\n"]
        return self.fork(name, lambda: (watch or plainly)(arguments), folder)

    def end(self) -> None:
        for run in self.started:
            run.kill()
        self.started.clear()


Watch = Callable[[list[str]], Any]


def _work(folder: Path, function: Callable[[], Any]) -> None:
    os.setpgid(0, 0)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        (folder / "found.json").write_text(json.dumps(function()))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def plainly(arguments: list[str]) -> None:
    if code := train(arguments):
        raise SystemExit(code)


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


# ------------------------------------------------------------------------------------------------ parts


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
        for name, model in OBJECTIVES.items()
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
        "--accelerator gpu"
    )
    facts: Facts = {}
    off = []
    for family, model in lab.sizes.families.items():
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
    return speed(lab, "gpt2", lab.sizes.gpt2, "--strategy single --precision bf16-mixed --compile true")


def gpt2_fp8(lab: Lab) -> Facts:
    return speed(lab, "gpt2 fp8", lab.sizes.gpt2, "--strategy single --precision fp8 --compile true")


def llama_fsdp(lab: Lab) -> Facts:
    return speed(lab, "llama fsdp", lab.sizes.llama, "--strategy fsdp --precision bf16-mixed --compile true")


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


@dataclass(frozen=True)
class Part:
    work: Callable[[Lab], Facts]
    seconds: float
    """Its limit."""

    @property
    def name(self) -> str:
        return self.work.__name__


PARTS = [
    Part(machine, 40),
    Part(parity, 90),
    Part(waits, 60),
    Part(dtypes, 120),
    Part(resume, 50),
    Part(gpt2, 150),
    Part(memory, 120),
    Part(recomputation, 40),
    Part(out_of_memory, 30),
    Part(sigterm, 40),
    Part(gpt2_fp8, 120),
    Part(llama_fsdp, 120),
]
"""In order of their value."""


# ------------------------------------------------------------------------------------------------ all of it


@contextmanager
def lines(out: Path | None) -> Iterator[Callable[[Facts], None]]:
    """Write lines of JSON to stdout and to a file, each at once."""
    stream = out.open("a") if out is not None else None

    def write(line: Facts) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        if stream is not None:
            print(text, file=stream, flush=True)
            os.fsync(stream.fileno())

    yield write
    if stream is not None:
        stream.close()


def perform(part: Part, lab: Lab, seconds: float, deadline: float) -> Facts:
    """Do a part within these seconds and the time that is left; return its line."""
    began = time.monotonic()
    lab.deadline = min(began + seconds, deadline)
    line: Facts = {"part": part.name, "status": "ok"}
    try:
        if deadline < began:
            raise Late("no time was left for it")
        line |= part.work(lab)
    except Late as late:
        line |= {"status": "late", "why": str(late)}
    except Wrong as wrong:
        line |= {"status": "wrong", "why": str(wrong), **wrong.facts}
    except Exception as error:  # of this file: the other parts go on
        line |= {"status": "broken", "why": f"{type(error).__name__}: {error}"}
    lab.end()
    return line | {"seconds": round(time.monotonic() - began, 1)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together (default: %(default)s)")
    parser.add_argument("--only", help=f"parts, separated by commas, of {','.join(part.name for part in PARTS)}")
    parser.add_argument("--out", type=Path, help="add the lines to this file, too")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="factor of all parts' limits (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="small models in all parts: to try this script")
    options = parser.parse_args(arguments)
    asked = options.only.split(",") if options.only else [part.name for part in PARTS]
    if unknown := set(asked) - {part.name for part in PARTS}:
        parser.error(f"--only {','.join(sorted(unknown))}: no such part")
    options.parts = [part for part in PARTS if part.name in asked]
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    end = time.monotonic() + 60 * options.minutes - RESERVE_SECONDS
    statuses: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="sslm-gpu-") as folder, lines(options.out) as write:
        lab = Lab(Path(folder), TINY if options.tiny else REAL)
        lab.deadline = end
        try:
            lab.fork("look", look_at_machine).wait()
        except Wrong as wrong:
            print(f"this machine has no GPU that torch can use ({wrong})", file=sys.stderr)
            return USER_ERROR
        for part in options.parts:
            line = perform(part, lab, options.patience * part.seconds, end)
            statuses[part.name] = line["status"]
            write(line)
        write({"part": "summary", **statuses})
    return 0 if set(statuses.values()) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
