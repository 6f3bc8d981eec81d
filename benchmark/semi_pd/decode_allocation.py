# SPDX-License-Identifier: Apache-2.0
"""What the memory manager adds to a decode step: microseconds per allocation.

    python benchmark/semi_pd/decode_allocation.py [--batch 256] [--steps 4000] [--json]

Runs the workers' allocator and upstream's by turns, on the CPU, over the same requests:
one token for each, which is a new page for a request every ``page size`` steps. The
computation of slot numbers, a kernel on a GPU, is replaced by taking the pages, in
both. ``added`` is the difference of the medians: the lease, its top-up under the lock,
the host's copy of the page numbers.
"""

from __future__ import annotations

import argparse
import json

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import allocation_steps as trial  # SGLang, which --help does not need

    trial.replace_kernels()
    for page_size in (1, 16, 64):
        result: dict[str, float] = {"page_size": page_size, "batch": options.batch}
        for name, kind in (("upstream", trial.Upstreams), ("ours", trial.Ours)):
            made = kind(page_size)
            samples = trial.measure(made, page_size, options.batch, options.steps)
            p50, p99 = np.percentile(samples, (50, 99))
            result[f"{name}_p50_us"] = round(float(p50), 2)
            result[f"{name}_p99_us"] = round(float(p99), 2)
        added = result["ours_p50_us"] - result["upstream_p50_us"]
        result["added_p50_us"] = round(added, 2)
        if options.json:
            print(json.dumps(result))
        else:
            print("  ".join(f"{name} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
