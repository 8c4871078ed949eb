"""Frozen records of what was seen: counts, never rates; floats, never formatted text.

They hold no tensors and import no torch, so that a report can be rendered anywhere. A scan, a
purification and an attack have one versioned record each, which is written as JSON.
"""
