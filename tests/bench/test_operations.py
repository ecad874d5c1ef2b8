"""What is timed when adapters are loaded and switched: the right number of them is there, and the right one changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.canonical import PROFILES, whole
from bench.cases import Case, Mode
from bench.operations import make
from bench.subject import UnsupportedError
from conformance.backends.reference import backend as reference
from conformance.contract import Backend, Feature, ModelHandle

pytestmark = [  # between PEFT and transformers
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

TINY = whole("tiny-llama", 2, 1, 4, Mode.LOAD)


def _names(handle: ModelHandle, n: int) -> set[str]:
    """Of "default", "adapter1" ... "adapter<n>", those that every site has."""
    names = {"default", *(f"adapter{nth}" for nth in range(1, n + 1))}
    return {name for name in names if all(_has(handle, path, name) for path in handle.sites())}


def _has(handle: ModelHandle, path: str, name: str) -> bool:
    try:
        handle.factors(path, name)
    except Exception:  # noqa: BLE001 - each library has an exception of its own for an unknown name
        return False
    return True


@pytest.mark.parametrize("backend", ["reference", "hooks", "peft"])
def test_each_sample_loads_the_nth_adapter_beside_the_others(backend: str) -> None:
    operation = make(replace(TINY, n_adapters=3), backend)
    assert operation.subject is not None
    handle = operation.subject.handle
    assert handle is not None
    for _ in range(3):
        given = operation.setup()
        assert _names(handle, 3) == {"default", "adapter1"}
        operation.run(given)
        assert _names(handle, 3) == {"default", "adapter1", "adapter2"}
    operation.setup()
    operation.setup()  # one that is not followed by a run does no harm
    for path, (a, b) in operation.subject.factors.items():
        assert all(x.equal(y) for x, y in zip((a, b), handle.factors(path, "adapter1"), strict=True)), path


def test_a_backend_that_cannot_load_beside_others_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    features = reference.manifest.features - {Feature.LOAD_BESIDE}
    poorer: Backend = replace(reference, manifest=replace(reference.manifest, features=features))
    monkeypatch.setattr("bench.subject.load", lambda _: poorer)
    operation = make(TINY, "poorer")
    operation.run(operation.setup())
    with pytest.raises(UnsupportedError, match="load_beside"):
        make(replace(TINY, n_adapters=2), "poorer")


@pytest.mark.parametrize("backend", ["reference", "peft"])
def test_each_sample_switches_to_another_adapter(backend: str) -> None:
    operation = make(replace(TINY, mode=Mode.SWITCH, n_adapters=3), backend)
    seen = []
    for _ in range(4):
        seen.append(operation.setup())
        operation.run(seen[-1])
    assert seen == ["adapter1", "adapter2", "default", "adapter1"]


def test_profiles_load_and_switch_against_the_number_of_adapters() -> None:
    def numbers(profile: str, mode: Mode, model: str) -> list[int]:
        cases: list[Case] = [case for case in PROFILES[profile]() if case.mode is mode and case.model == model]
        assert len({case.case_id for case in cases}) == len(cases)
        return [case.n_adapters for case in cases]

    assert numbers("cpu-quick", Mode.LOAD, "tiny-llama") == [1, 4]
    for mode in (Mode.LOAD, Mode.SWITCH):
        assert numbers("cpu", mode, "minilm") == [1, 4, 16, 64]
