from __future__ import annotations

import math

import pytest

from lora_ref.errors import LoraError
from lora_ref.spec import LoraSpec
from lora_ref.targets import matches, select


def test_scaling_laws() -> None:
    assert LoraSpec(r=8, alpha=12).scaling == 1.5
    assert LoraSpec(r=8, alpha=12, rslora=True).scaling == 12 / math.sqrt(8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0, "alpha": 1}, "r must be a whole number of at least 1, got 0"),
        ({"r": -2, "alpha": 1}, "r must be a whole number of at least 1, got -2"),
        ({"r": 2.0, "alpha": 1}, "r must be a whole number of at least 1, got 2.0"),
        ({"r": True, "alpha": 1}, "r must be a whole number of at least 1, got True"),
        ({"r": 2, "alpha": 0}, "alpha must be finite and positive, got 0"),
        ({"r": 2, "alpha": math.nan}, "alpha must be finite and positive, got nan"),
        ({"r": 2, "alpha": 1, "dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"r": 2, "alpha": 1, "rank_pattern": {"q": 0}}, "r must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_values_are_refused_in_one_line(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LoraError) as caught:
        LoraSpec(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_the_longest_key_of_a_pattern_wins() -> None:
    spec = LoraSpec(r=2, alpha=4, rank_pattern={"q": 3, "1.q": 5}, alpha_pattern={"q": 9})
    assert (spec.at("layers.0.q").r, spec.at("layers.1.q").r, spec.at("layers.0.k").r) == (3, 5, 2)
    assert (spec.at("layers.0.q").alpha, spec.at("layers.0.k").alpha) == (9, 4)


def test_targets_match_whole_parts_of_a_path() -> None:
    assert matches("q_proj", "layers.0.q_proj")
    assert matches("0.q_proj", "layers.0.q_proj")
    assert not matches("proj", "layers.0.q_proj")
    assert not matches("1.q_proj", "layers.11.q_proj")


def test_a_target_that_matches_nothing_is_named_with_what_there_is() -> None:
    with pytest.raises(LoraError, match="target 'nope' matches no module; modules that can carry LoRA end in: k, q"):
        select(["q", "nope"], ["a.q", "b.k"])
