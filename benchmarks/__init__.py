"""Measures tarpon, its peers and the ceilings in one run. Development only; never shipped."""
