"""Small tasks of lm-evaluation-harness, with their data beside them."""

import json
from pathlib import Path

CHOICE = """
task: sitting
dataset_path: json
dataset_kwargs: {data_files: {test: sitting.jsonl}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs: {data_files: {test: sitting.jsonl}}
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROWS = [
    {"question": f"the {animal} sat on", "choices": ["a mat", "the cat . a dog", "dogs"], "gold": number % 3}
    for number, animal in enumerate(["cat", "dog", "cats", "dogs", "mat"] * 2)
]


def write_tasks(folder: Path) -> Path:
    """Write both tasks and their rows into a folder."""
    folder.mkdir()
    (folder / "sitting.yaml").write_text(CHOICE)
    (folder / "writing.yaml").write_text(WRITING)
    (folder / "sitting.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder
