"""Broken backends, one defect each. ``MUTANTS`` holds them by id."""

from conformance.mutants import article as article
from conformance.mutants import scaling as scaling
from conformance.mutants.mutant import MUTANTS as MUTANTS
