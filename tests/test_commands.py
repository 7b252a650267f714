"""The commands of these pages are run, page after page in one folder, but for those that need what no test has.

More flags keep runs short; nothing else is changed. Where a page leaves the run folder to sslm, and another command has
it already, the command gets a folder of its own.
"""

import functools
import gzip
import itertools
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow
import pyarrow.parquet
import pytest

from sslm.__main__ import main
from sslm.cli.parse import parse
from tests.support.processes import Ranks

ROOT = Path(__file__).parent.parent
RUN_PAGES = [
    "start",
    "clean",
    "data",
    "tokenizers",
    "objectives",
    "models",
    "optimizers",
    "strategies",
    "performance",
    "checkpoints",
    "look",
    "evaluate",
    "generate",
    "finetune",
    "distill",
    "prune",
]
NOT_THESE = {
    "coming_from": "has commands of other tools, and ours to their data",
    "clouds": "is of machines that are rented: tests/test_clouds.py",
    "compress": "measures each model in a process of its own: tests/cli/test_compress.py",
    "licences": "has no commands",
    "extending": "has an objective to write: tests/test_readme.py",
    "formats": "has no commands",
    "lessons": "has no commands",
    "scale": "has a benchmark's: tests/benchmarks/test_scale.py",
}
"""Pages, and why their commands are not run."""
WHY_NOT = {
    "make ": "installs, or runs all tests; .ci/run does both",
    "source .venv": "is for the environment that make makes",
    "pip install": "installs",
    "sbatch ": "needs SLURM: tests/test_slurm.py",
    "s3://": "needs object storage: tests/data/test_remote_runs.py",
    "https://": "needs a web server: tests/data/corpus/test_remote.py",
    "roneneldan/": "needs the hub",
    "arc_easy": "needs the hub",
    "--devices 8": "needs eight GPUs; tests/parallel/test_strategies.py has two CPU processes",
    "--nproc-per-node 8": "needs eight GPUs",
    "--workspace": "needs wandb-workspaces: tests/runs/test_trackers.py",
    "wandb": "needs W&B: tests/runs/test_trackers.py",
    "sslm ui": "serves until Ctrl-C: tests/ui",
    "--interactive": "needs somebody who types: tests/cli/test_generate.py",
    "/scratch/me": "needs that disk",
    "sslm doctor": "takes a minute: tests/cli/test_doctor.py",
    "--seeds": "takes half a minute: tests/cli/test_seeds.py",
    "verify-resume": "takes a minute: tests/cli/test_verify_resume.py",
    "--profile": "looks at four steps more: tests/training/test_profile.py",
    "nodes=64": "takes a minute: tests/cli/test_plan.py",
}
"""What commands have in them that are not run, and why they are not."""
SHORT = (
    "--seq_len 32 --batch_size 4 --max_steps 4 --val_every 4 --log_every 1 --data.val_sequences 12 --accelerator cpu"
)
SMALL = "--model.hidden_size 32 --model.intermediate_size 64 --model.num_hidden_layers 2 --model.num_attention_heads 2"
RARELY = "--val_every 100 --checkpoint.every_steps 100 --checkpoint.keep_last 5"
CODES = {"--stop_after": 75, "ckpt diff": 1}
"""What commands have in them that end otherwise than with 0: stopped, and something differs."""
SHORT_TOO = {
    "gpt2-124m": "--model.n_layer 2 --model.n_embd 64 --model.n_head 2 --compile off --micro_batch_size 4",
    "model_type bert": SMALL,
    "model_type qwen3": f"{SMALL} --model.num_key_value_heads 2 --model.head_dim 16",
    "model_type gpt2 --model.n_layer 4": "--model.n_embd 64 --model.n_head 2",
    "tie_word_embeddings false": SMALL,
    "runs/again": "--max_steps 60 --val_every 20",
    "--data.train my.txt --run_dir runs/mine": f"{SMALL} --max_steps 300 {RARELY}",
    "plan": "--batch_size 16 --micro_batch_size 1",
    "resume_with": "--max_steps 304",
    "from 5e5 tokens": "--seq_len '8, 32 from 256 tokens'",
    "from 4e5 tokens": "--batch_size '4, 8 from 256 tokens'",
}
"""What some commands have in them, and flags that they get on top."""


def commands_of(page: str) -> list[str]:
    """List the commands in a page's blocks; lines that begin otherwise are lists of files, or Python."""
    lines = [line.strip() for line in (ROOT / page).read_text().splitlines() if line.startswith("    ")]
    first = ("python -m sslm", "sslm ", "torchrun ", "sbatch ", "make ", "pip ", "source ")
    return [line.split("  #")[0].strip() for line in lines if line.startswith(first)]


COMMANDS = list(
    dict.fromkeys(itertools.chain(commands_of("README.md"), *(commands_of(f"docs/{page}.md") for page in RUN_PAGES)))
)
RUN = [command for command in COMMANDS if not any(part in command for part in WHY_NOT)]


def test_each_page_is_run_or_says_why_not() -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages == {*RUN_PAGES, *NOT_THESE}


@pytest.mark.parametrize("part", [*WHY_NOT, *SHORT_TOO])
def test_there_is_a_command_with(part: str) -> None:
    assert any(part in command for command in COMMANDS)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take to be there: texts, tables, tasks, and runs of their own commands."""
    folder = tmp_path_factory.mktemp("newcomer")
    texts = [text[:1000] for _, text in sorted(topics.items())[:120]]
    for name in ("my.txt", "other.txt", "books.txt", "book.txt", "data/wiki.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n\n".join(texts))
    write_rows(folder / "books.jsonl", [{"text": text} for text in texts])
    write_rows(folder / "data/wiki.jsonl", [{"text": text} for text in texts])
    write_rows(folder / "prompts.jsonl", [{"prompt": "Once"}, {"prompt": "The"}])
    (folder / "books").mkdir()
    with pyarrow.output_stream(folder / "books/a.jsonl.zst", compression="zstd") as file:
        file.write("".join(json.dumps({"body": text}) + "\n" for text in texts).encode())
    (folder / "raw").mkdir()
    with gzip.open(folder / "raw/a.jsonl.gz", "wt") as file:
        prose = " ".join(" ".join(topics.values()).split())
        said = list(dict.fromkeys(re.findall(r"[A-Z][a-z]+ [\w ,]{60,250}\.(?= )", prose)))
        rows = ["\n".join(said[first : first + 8]) for first in range(0, len(said), 8)]
        file.writelines(json.dumps({"text": row}) + "\n" for row in rows)
    (folder / "fineweb").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "fineweb/a.parquet")
    for name in ("train.tsv", "dev.tsv", "new.tsv"):
        rows = [f"{text.split('.')[0].split(chr(10))[-1]}\t{'long' if len(text) > 500 else 'short'}" for text in texts]
        (folder / name).write_text("\n".join(["text\tlabel", *rows]) + "\n")
    (folder / "tasks").mkdir()
    [task] = re.findall(r"```yaml\n(task: .*?)```", (ROOT / "docs/evaluate.md").read_text(), re.DOTALL)
    (folder / "tasks/capitals.yaml").write_text(task)
    question = {"question": "The capital of Mali is", "choices": [" Bamako", " Lima"], "answer": 0}
    write_rows(folder / "tasks/capitals.jsonl", [question] * 8)

    type_in(folder, "python -m sslm.train")  # as make train does
    type_in(folder, "python -m sslm.train --data.train my.txt --run_dir runs/mine")
    shutil.copytree(folder / "runs/mine/export", folder / "gpt2")  # stands for the hub's
    type_in(folder, "sslm prepare 'fineweb/*.parquet' --out data/fineweb --tokenizer gpt2")
    type_in(folder, "python -m sslm.train --model.pretrained runs/mine --data.train other.txt --run_dir runs/other")
    type_in(folder, "python -m sslm.train --objective masked_lm --objective.unit word --model.model_type bert")
    type_in(folder, "sslm prepare 'fineweb/*.parquet' --out data/corpus")
    copies = {"data/fineweb": ["data/wiki"], "runs/mine": ["runs/a", "runs/b"], "runs/masked_lm": ["runs/bert"]}
    for name, others in copies.items():
        for other in others:
            shutil.copytree(folder / name, folder / other)
    return folder


def write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_command_runs(command: str, here: Path) -> None:
    if command.startswith("sslm prepare") and (here / "data/fineweb").exists():
        shutil.rmtree(here / "data/fineweb")
    type_in(here, command)


def type_in(here: Path, command: str) -> None:
    """Run a command in the folder, in a process of its own; it must end with 0, or as CODES says."""
    words = shlex.split(command.replace("python -m sslm.train", "sslm train"))[1:]
    if words[0] in ("train", "finetune", "plan", "distill-cache"):
        words += shlex.split(" ".join([SHORT, *(more for part, more in SHORT_TOO.items() if part in command)]))
    if words[0] in ("train", "finetune") and "--run_dir" not in words:
        folder = here / parse(words[1:]).run_folder
        words += ["--run_dir", f"{folder}-{len([*folder.parent.iterdir()])}"] if folder.exists() else []
    env = {"XDG_CACHE_HOME": str(here / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = Ranks(words, here / "said", world=1, env=env, before=functools.partial(os.chdir, here), verb=main)
    wanted = next((code for part, code in CODES.items() if part in command), 0)
    assert process.wait(120) == [wanted], process.said()
