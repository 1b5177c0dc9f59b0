"""Measures tarpon, its peers and the ceilings in one run. Development only; never shipped."""

ABSENT = 69
"""Exit status of a process whose peer cannot be imported; the reason is the last line printed."""
