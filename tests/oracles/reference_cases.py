"""Inputs for frozen answers of the public reference implementation.

Made of integer arithmetic only, so that every platform builds the same bits; the digests of what
the reference's own functions returned for them are in the tests.
"""

import hashlib

import numpy as np

GRID = 24
IMAGE_SIZES = [(640, 427), (1024, 683), (336, 336), (200, 900), (31, 4000), (500, 499)]


def attention_case(seed):
    """(24, 24) float32 grounding and sink maps: noise, ramps around some points, sparse spikes."""
    noise = _integers(seed, 997) / np.float32(997)
    sparse = _integers(seed + 1, 1009)
    y, x = np.mgrid[:GRID, :GRID]
    ramp = np.zeros((GRID, GRID), dtype=np.int64)
    for point in range(seed % 4):
        row, column = (seed * 7 + point * 11) % GRID, (seed * 5 + point * 17) % GRID
        radius = 2 + (seed + point) % 6
        ramp = np.maximum(ramp, radius - np.maximum(abs(y - row), abs(x - column)))
    scale = np.float32([1.0, 0.25, 0.03125, 0.0078125][seed % 4])
    skewed = (noise, noise * noise, noise * noise * noise)[seed % 3]
    grounding = (skewed * np.float32(0.125) + ramp.astype(np.float32)) * scale
    sink = np.where(sparse % 37 == 0, np.float32(0.05), np.float32(0.0001))
    sink = np.where(sparse % 41 == 0, np.float32(0.001), sink)
    return grounding.astype(np.float32), np.where(sparse % 43 == 0, np.float32(0.01), sink)


def probability_case(seed):
    """(24, 24) float32 map in [0, 1]: a few rectangles, some single cells, weak noise."""
    values = _integers(seed, 251) / np.float32(2510)
    numbers = _integers(seed + 5, 24).ravel()
    for part in range(1 + seed % 4):
        y, x, h, w = numbers[4 * part : 4 * part + 4]
        level = np.float32([0.9, 0.5, 0.3][part % 3])
        values[y : y + 1 + h % (2 + seed % 9), x : x + 1 + w % (2 + seed % 7)] = level
    return values.astype(np.float32)


def digest(arrays):
    """First 16 hex digits of the SHA-256 of integer arrays, as int16 little-endian."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array, dtype="<i2").tobytes())
    return sha.hexdigest()[:16]


def _integers(seed, modulus):
    """(24, 24) int64 in [0, modulus) from a multiplicative hash of the cell number."""
    cells = np.arange(GRID * GRID, dtype=np.uint64) + np.uint64(seed * GRID * GRID + 1)
    mixed = cells * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    return (mixed % np.uint64(modulus)).astype(np.int64).reshape(GRID, GRID)
