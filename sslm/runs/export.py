"""A plain Hugging Face folder of a checkpoint: it loads with transformers alone."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sslm.config import Config, ModelConfig
from sslm.models.architecture import auto_class_named
from sslm.runs.checkpoints.folder import read_state
from sslm.runs.folder import RunFolder, pretrained_folder
from sslm.runs.trackers.about import known_about
from sslm.runs.trained import checkpoint_model, export_adapter
from sslm.system.errors import UserError
from sslm.system.plain_yaml import load


def export(checkpoint: Path, out: Path, last: bool = False) -> None:
    """Write a Hugging Face folder, replacing it: weights in fp32, config, tokenizer, generation config, model card.

    Args:
        last: the last weights, also where there is an average of them (`--optim.average_decay`).
    """
    model, weights = checkpoint_model(checkpoint, last)
    state, run = read_state(checkpoint), RunFolder(checkpoint.parent.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    part.chmod(0o755)
    try:
        shutil.copytree(checkpoint / "model", part, dirs_exist_ok=True)
        model.save_pretrained(part, state_dict=weights)
        if (checkpoint / "model/generation_config.json").is_file():  # save_pretrained has written the default's
            shutil.copy(checkpoint / "model/generation_config.json", part)
        card = model_card(model.config, auto_class_of(part), own_code(part), state, run)
        (part / "README.md").write_text(card, encoding="utf-8")
        export_adapter(checkpoint, part / "adapter", pretrained_of(run), last)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def auto_class_of(folder: Path) -> str:
    """transformers' Auto class that loads an exported folder."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return auto_class_named(name)


def own_code(folder: Path) -> str:
    """Return the argument that `from_pretrained` needs if an exported folder brings its model's code, as an LSTM's.

    Its tokenizer must be told too: transformers asks the model's config which tokenizer it is.
    """
    return ", trust_remote_code=True" if "auto_map" in json.loads((folder / "config.json").read_text()) else ""


def origin_of(run: RunFolder) -> str:
    """Say what weights a run began with, as far as its config.yaml tells."""
    try:
        model = load(run.config.read_bytes())["model"]
        pretrained, vectors = model["pretrained"], model["embedding_init"]
    except (OSError, ValueError, TypeError, KeyError):  # the checkpoint lies elsewhere, or the file is damaged
        return "Trained"
    if pretrained is not None:
        return f"Continued from `{pretrained}`"
    return "Trained from scratch" + (f", its embedding from the vectors of `{vectors}`," if vectors else "")


def pretrained_of(run: RunFolder) -> str | None:
    """Name the weights that a run began with, as transformers takes them, or return None if its config doesn't tell."""
    try:
        given = load(run.config.read_bytes())["model"]["pretrained"]
        return pretrained_folder(Config(model=ModelConfig(pretrained=given)))
    except (OSError, ValueError, TypeError, KeyError, UserError):  # it lies elsewhere, or is damaged, or is no more
        return None


def cleaned_text(run: RunFolder) -> str:
    """Say how the text that a run was trained on was cleaned, as far as about.json tells; empty if it was not."""
    lines = []
    for name, cleaned in (known_about(run).get("cleaned") or {}).items():
        try:
            documents, settings = cleaned["documents"], cleaned["settings"]
            kept = f"{documents['kept']:,} of {documents['read']:,} documents kept"
            steps = [*settings["rules"], *settings["duplicates"]["methods"], *settings["redact"]]
            lines.append(
                f"- {name or 'text'}: {kept}; {', '.join(steps) or 'normalised'}; record {cleaned['sha256']}\n"
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return f"\n## Training text, cleaned with sslm\n\n{''.join(lines)}" if lines else ""


def model_card(config: Any, auto_class: str, own_code: str, state: dict[str, Any], run: RunFolder) -> str:
    measured = [row for row in run.rows() if "val/loss" in row and row["step"] <= state["step"]]
    last = measured[-1] if measured else {}
    results = "".join(f"- {k.removeprefix('val/')}: {v:.4f}\n" for k, v in last.items() if k.startswith("val/"))
    return f"""---
library_name: transformers
tags: [sslm]
---
# {config.architectures[0]}

{origin_of(run)} with sslm {state["sslm"]} (objective {state["objective"]}), {state["step"]} optimizer steps.

## Held-out text

{results or "not measured"}
{cleaned_text(run)}## Use

```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("path/to/this/folder"{own_code})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"{own_code})
```

## Config

```json
{json.dumps(config.to_diff_dict(), indent=1, default=str)}
```
"""
