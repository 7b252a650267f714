"""Sentence embeddings from an exported encoder: sentence-transformers teaches it with pairs that belong together.

pip install sentence-transformers
python examples/sentence_embeddings.py runs/encoder/export pairs.tsv embedder      # two texts a line, apart by a tab
"""

import argparse
import csv
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer


def main(export: str, pairs: Path, out: Path, steps: int) -> None:
    body = Transformer(export)  # the model without its head
    model = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), pooling_mode="mean")])
    with open(pairs, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) == 2]
    dataset = Dataset.from_list([{"anchor": one, "positive": other} for one, other in rows])
    arguments = SentenceTransformerTrainingArguments(
        str(out), max_steps=steps, per_device_train_batch_size=32, save_strategy="no", logging_steps=1, report_to="none"
    )
    SentenceTransformerTrainer(model, arguments, dataset, loss=MultipleNegativesRankingLoss(model)).train()
    model.save_pretrained(str(out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    main(**vars(parser.parse_args()))
