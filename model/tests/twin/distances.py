#!/usr/bin/env python3
"""Distances of feature sets by numpy and scipy: an independent twin of model/src/evaluation/{frechet,kernel}.rs.

  distances.py OUT.safetensors

Writes features `plain.a`, `plain.b` (more rows than features) and `few.a`, `few.b` (fewer), f32, and of each pair `frechet` and `kernel`, f64; of the
latter the Frechet distance is taken in the 64 principal components of a. Needs from PyPI: numpy, scipy, safetensors.
"""
import sys
import numpy as np
import scipy
from safetensors.numpy import save_file


def frechet(a, b):
    mean = a.mean(0) - b.mean(0)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb)
    return mean @ mean + np.trace(ca) + np.trace(cb) - 2 * np.trace(root).real


def kernel(a, b):
    def k(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        n = len(x)
        return (k(x, x).sum() - np.trace(k(x, x))) / (n * (n - 1))

    return within(a) + within(b) - 2 * k(a, b).mean()


def components(reference, features, count=64):
    mean = reference.mean(0)
    directions = np.linalg.svd(reference - mean, full_matrices=False)[2][:count]
    return (features - mean) @ directions.T


def features(random, rows, width, shift):
    mixed = random.normal(size=(rows, width)) @ random.normal(size=(width, width)) / np.sqrt(width)
    return (mixed * np.linspace(0.2, 2, width) + shift).astype(np.float32)


def main(out):
    random = np.random.default_rng(0)
    print("numpy", np.__version__, "scipy", scipy.__version__)
    tensors = {}
    for name, rows, width in [("plain", (90, 70), 12), ("few", (80, 75), 100)]:
        pair = [features(random, n, width, shift) for n, shift in zip(rows, (0.0, 0.3))]
        a, b = (x.astype(np.float64) for x in pair)
        projected = (a, b) if name == "plain" else (components(a, a), components(a, b))
        tensors |= {f"{name}.a": pair[0], f"{name}.b": pair[1]}
        tensors |= {f"{name}.frechet": np.array([frechet(*projected)]), f"{name}.kernel": np.array([kernel(a, b)])}
        print(name, frechet(*projected), kernel(a, b))
    save_file(tensors, out)


main(sys.argv[1])
