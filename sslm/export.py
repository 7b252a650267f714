"""A plain Hugging Face folder of a checkpoint: it loads with transformers alone.

sslm export RUN --out DIR
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sslm.errors import UserError, exits_politely
from sslm.runs import RunFolder
from sslm.terminal import keep_libraries_quiet, say


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sslm export", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="run folder (its newest checkpoint is taken), or one checkpoint's folder")
    parser.add_argument("--out", required=True, type=Path, help="folder to make; it must not exist")
    options = parser.parse_args(arguments)
    keep_libraries_quiet()
    checkpoint = find_checkpoint(options.run)
    if options.out.exists():
        raise UserError(f"--out {options.out}: already exists; remove it, or choose another folder")
    export(checkpoint, options.out)
    say(f"{checkpoint} -> {options.out}")
    return 0


def find_checkpoint(given: str | Path) -> Path:
    """A run folder or a checkpoint -> the checkpoint.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from sslm import checkpoints

    path = Path(given)
    if (path / "manifest.json").is_file() or (path / "state.json").is_file():
        if damage := checkpoints.damage_of(path):
            raise UserError(f"{path}: this checkpoint is damaged ({damage}); take another of its run")
        return path
    run = RunFolder(path)
    newest = checkpoints.newest_good(run.checkpoints, say) if run.checkpoints.is_dir() else None
    if newest is None:
        raise UserError(f"{given}: neither a run folder with a checkpoint, nor a checkpoint")
    return newest


def export(checkpoint: Path, out: Path) -> None:
    """Write the folder `out`, replacing it: weights (safetensors, fp32), config, tokenizer, generation config, model card."""
    import torch
    from transformers import AutoConfig

    from sslm import checkpoints
    from sslm.models.build import class_named

    config = AutoConfig.from_pretrained(checkpoint / "model")
    with torch.device("meta"):
        model = class_named(config.architectures[0])(config)
    tied = checkpoints.tied_names(model)
    weights = checkpoints.read_weights(checkpoint, {k: v for k, v in model.state_dict().items() if k not in tied})
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    part.chmod(0o755)
    try:
        shutil.copytree(checkpoint / "model", part, dirs_exist_ok=True)
        model.save_pretrained(part, state_dict=weights)
        if (checkpoint / "model/generation_config.json").is_file():  # save_pretrained has written the default's
            shutil.copy(checkpoint / "model/generation_config.json", part)
        (part / "README.md").write_text(
            model_card(config, checkpoints.read_state(checkpoint), RunFolder(checkpoint.parent.parent).rows())
        )
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def model_card(config: Any, state: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    measured = [row for row in rows if "val/loss" in row and row["step"] <= state["step"]]
    results = "".join(
        f"- {k.removeprefix('val/')}: {v:.4f}\n" for k, v in (measured or [{}])[-1].items() if k.startswith("val/")
    )
    return f"""---
library_name: transformers
tags: [sslm]
---
# {config.architectures[0]}

Pretrained from scratch or continued with sslm {state["sslm"]} (objective {state["objective"]}), {state["step"]} optimizer steps.

## Held-out text

{results or "not measured"}
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

## Config

```json
{json.dumps(config.to_diff_dict(), indent=1, default=str)}
```
"""


if __name__ == "__main__":
    raise SystemExit(main())
