"""All invariants, in the order in which they are reported: the basics first."""

from conformance.invariants import forward as forward  # noqa: I001 - the order is the order of the reports
from conformance.invariants import scaling as scaling
from conformance.invariants import identity as identity
from conformance.invariants import gradients as gradients
from conformance.invariants import freezing as freezing
from conformance.invariants import mode as mode
from conformance.invariants import merge as merge
from conformance.invariants import merge_state as merge_state
from conformance.invariants import dtype as dtype
from conformance.invariants import layout as layout
from conformance.invariants import variants as variants
from conformance.invariants import residual as residual
from conformance.invariants import quantised as quantised
from conformance.invariants import adapters as adapters
from conformance.invariants import caches as caches
from conformance.invariants import routing as routing
from conformance.invariants import init as init
from conformance.invariants import copying as copying
from conformance.invariants import memory as memory
from conformance.invariants import determinism as determinism
from conformance.invariants import lifecycle as lifecycle
from conformance.invariants import on_models as on_models
from conformance.invariants import switching as switching
from conformance.invariants import tied as tied
from conformance.invariants import targets as targets
from conformance.invariants import persistence as persistence
from conformance.invariants import loading as loading
from conformance.invariants import ways as ways
from conformance.invariants import autocast as autocast
from conformance.invariants import training as training
from conformance.invariants import distributed as distributed
