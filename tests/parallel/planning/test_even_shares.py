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


def test_blocks_that_ask_for_their_shares_are_planned_as_if_they_were_not_compiled() -> None:
    jetmoe, switch, mixtral = (
        measure(on_meta(*FAMILIES[family]), SHAPES, on_gpu=True).one for family in ("jetmoe", "switch", "mixtral")
    )
    assert jetmoe.compiled == jetmoe.inside
    assert switch.products < switch.compiled < switch.inside  # half of its blocks have no experts
    assert mixtral.compiled < 0.9 * mixtral.inside
