"""A model with several adapters, each known by its files: what the invariants of loading act on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from conformance.contract import Array, Feature
from conformance.invariants.merge import restored
from conformance.loads import Loads
from conformance.model_cases import ModelCase
from conformance.peft_layout import write_adapter
from conformance.sites import oracle_of, outputs, site_oracle, watching
from conformance.state import State
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy, to_torch
from conformance.violation import must

_NEEDS = {"disabled": {Feature.DISABLE}, "merged": {Feature.MERGE, Feature.UNMERGE}}


@dataclass(frozen=True)
class _Files:
    """An adapter in PEFT's layout: A (r, in) and B (out, r) of each path; r, alpha and patterns are the case's."""

    case: ModelCase
    folder: Path
    factors: dict[str, tuple[Array, Array]]


class FromFiles:
    """``files`` are those of the case, the first adapter's at 0; ``adapters`` tells which of them each name means."""

    def __init__(self, subject: Subject, case: Loads, root: Path) -> None:
        self.subject, self.case = subject, case
        root.mkdir()
        self.files = [_Files(each, root / f"{n}", each.factors()) for n, each in enumerate(case.each)]
        for files in self.files:
            write_adapter(files.folder, files.case.spec, files.factors)
        first = self.files[0]
        if case.from_file:
            self.handle = subject.store.load(case.loaded.fresh(), first.folder)
        else:
            self.handle = subject.model.attach(case.loaded.fresh(), case.spec)
        self.adapters, self.active = {"default": first}, "default"
        self.handle.module.eval()
        wide = case.dtype != "float32" and subject.has(Feature.MIXED_DTYPE)  # wider than what is loaded beside it
        with torch.no_grad():
            for path, values in first.factors.items():
                for factor, value in zip(self.handle.factors(path), values, strict=True):
                    factor.data = factor.data.float() if wide else factor.data
                    factor.copy_(to_torch(value))

    def state(self) -> State:
        paths = {name: files.factors for name, files in self.adapters.items()}
        return State(self.subject, self.handle, paths)

    def must_hold(self, state: State, after: str, when: str = "plain") -> None:
        state.must_hold(f"after {after}")
        self.judge_sites(after, when)

    def activate(self, name: str) -> None:
        self.handle.activate(name)
        self.active = name

    def load(self, n: int, name: str) -> None:
        self.subject.store.add(self.handle, self.files[n].folder, name)
        self.adapters[name] = self.files[n]
        self.judge_factors(name)

    def load_while(self, when: str, n: int, name: str) -> None:
        """Load in a state of the model that the backend has, and compare all but the new adapter."""
        when = when if all(self.subject.has(need) for need in _NEEDS.get(when, ())) else "plain"
        self.handle.module.train(when == "training")
        if when == "disabled":
            self.handle.enable(on=False)
        elif when == "merged":
            self.handle.merge()
        state = self.state()
        try:
            self.subject.store.add(self.handle, self.files[n].folder, name)
        except Exception:
            if when != "merged":
                raise
            self.must_hold(state, "a load was refused while merged", when)
            self._unmerge()
            self.subject.store.add(self.handle, self.files[n].folder, name)
        else:
            self.must_hold(state, f"{name!r} was loaded in the state {when!r}", when)
            self.adapters[name] = self.files[n]
            if when == "disabled":
                self.activate(name)
                self.judge_sites(f"{name!r} is active, but all are disabled", when)
                self.handle.enable(on=True)
            elif when == "merged":
                self._unmerge()
        self.handle.module.eval()
        self.adapters[name] = self.files[n]
        self.judge_factors(name)

    def _unmerge(self) -> None:
        """W comes back within its rounding; then it gets its own bits again, as no more is asked of an unmerge."""
        self.handle.unmerge()
        for path in self.adapters[self.active].factors:
            oracle = site_oracle(self.adapters[self.active].case, self.handle, path, self.subject.manifest, self.active)
            got = to_numpy(self.handle.weight(path))
            self.subject.judge(f"W of {path} after unmerging", got, restored(oracle), exact=False)
        pristine = self.case.loaded.module.state_dict()
        with torch.no_grad():
            for name, tensor in self.handle.base_tensors().items():
                tensor.copy_(pristine[name])

    def delete(self, name: str) -> None:
        del self.adapters[name]
        state = self.state()
        self.handle.delete(name)
        self.must_hold(state, f"{name!r} was deleted")

    def judge_factors(self, name: str) -> None:
        """A, B, r and s of the adapter are those of its files."""
        files = self.adapters[name]
        missing = sorted(files.factors.keys() - self.handle.sites().keys())
        must(not missing, f"modules adapted by {name!r}", "all that its files name", f"not {', '.join(missing)}")
        for path, saved in files.factors.items():
            for which, live, wanted in zip("AB", self.handle.factors(path, name), saved, strict=True):
                self.subject.judge.same(f"{which} of {name!r} at {path}", to_numpy(live), wanted)
            spec, found = files.case.spec.at(path), self.handle.spec_at(path, name)
            must(found == (spec.r, spec.scaling), f"rank and scaling of {name!r} at {path}",
                 (spec.r, spec.scaling), found)  # fmt: skip

    def judge_alone(self, name: str) -> None:
        self.activate(name)
        self.judge_sites(f"{name!r} alone is active")

    def judge_sites(self, when: str, state: str = "plain") -> None:
        """In eval mode each site gives the active adapter's closed form, or the base's where that has none or is off.

        Bits are not asked for: a library may compute a module otherwise once its neighbour has an adapter.
        """
        module, mode = self.handle.module, self.handle.module.training
        with torch.no_grad(), watching(self.handle) as seen:
            outputs(module.eval(), self.case.loaded.inputs(self.case.seed))
        module.train(mode)
        files, manifest = self.adapters[self.active], self.subject.manifest
        for path, call in seen.items():
            quantity = f"y of {path} when {when}"
            if path not in files.factors or state == "disabled":
                owner = next(files for files in self.files if path in files.factors)
                base = oracle_of(owner.case, path, *owner.factors[path], manifest).base_forward(call.x)
                self.subject.judge(quantity, call.y, base, exact=False)
                continue
            oracle = site_oracle(files.case, self.handle, path, manifest, self.active)
            expected = oracle.merged_forward(call.x, narrow=True) if state == "merged" else oracle.forward(call.x)
            delta, spec = oracle.delta(call.x).value, files.case.spec.at(path)
            self.subject.judge(quantity, call.y, expected, exact=False, delta=delta, spec=spec)
