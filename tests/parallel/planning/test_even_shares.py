"""Models that look at their tensors' contents are measured as if chance and routers were even."""

import copy

from sslm.models.build import on_meta
from sslm.parallel.planning.activation_memory import measure
from tests.support.families import FAMILIES, SHAPES


def test_a_layer_that_chance_may_drop_is_planned_for() -> None:
    config, auto_class = FAMILIES["bart"]
    dropping = copy.deepcopy(config)
    dropping.encoder_layerdrop = dropping.decoder_layerdrop = 0.5
    kept, always = (measure(on_meta(c, auto_class), SHAPES, on_gpu=False) for c in (dropping, config))
    assert kept == always
