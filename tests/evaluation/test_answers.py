"""A task's questions in chunks: what is answered is kept, whatever becomes of the rest."""

import json
import sys
from pathlib import Path

import pytest

from sslm.evaluation.journal import Journal
from sslm.evaluation.sharing import ALONE
from sslm.models.head import LanguageModel
from sslm.runs.trained import open_trained
from tests.support.trained import save_model, word_piece

QUESTIONS = [(f"the {animal} sat on", f" {end}") for animal in ("cat", "dog") for end in ("a mat", "the dog", "cats")]


@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_answers_are_kept_by_chunks_and_not_asked_for_again(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from sslm.evaluation.answers import InChunks
    from sslm.evaluation.harness_models import harness_model

    trained = open_trained(str(save_model(tmp_path / "bert", "bert", word_piece(), positions=32)))
    model = harness_model(trained, LanguageModel(trained.model.float(), 1).eval(), None, None, 256)
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(QUESTIONS)]
    out, file = tmp_path / "out.json", tmp_path / ".out.json.journal"

    def ask() -> list[tuple[float, bool]]:
        return InChunks(model, "task", Journal(out), "weights", 4, ALONE, sys.stdout).loglikelihood(requests)

    right = ask()
    assert [nats for nats, _ in right] == pytest.approx([nats for nats, _ in model.loglikelihood(requests)])
    first, second = map(json.loads, file.read_text().splitlines())
    assert [len(chunk["answers"]) for chunk in (first, second)] == [4, 2]
    first["answers"][0] = [-99.0, True]  # told from what is asked for again
    file.write_text(json.dumps(first) + '\n{"torn')
    assert ask() == [(-99.0, True), *right[1:]]
    assert json.loads(file.read_text().splitlines()[1]) == second
