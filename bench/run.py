"""Measure: `python -m bench.run [--quick] [--only reading,extraction,stores,memory,start,…] [--rounds 5]`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median

from bench import extraction, memory, pipeline, reading, start
from bench.project import (
    CACHED,
    DEFAULT_STORE,
    ENCODING,
    GRADING,
    GRADING_MEMORY,
    MAPPING,
    NETWORKS,
    READER,
    STORES,
    TRAINING,
    UNET,
)
from bench.results import BASELINE, Results
from bench.slides import FULL, QUICK, make_slide

PARTS = (
    "reading",
    "extraction",
    "stores",
    "memory",
    "start",
    "training",
    "inference",
    "grading",
    "pipeline",
    "features",
)


def main() -> None:
    """Measure, print the table and write `bench/results.json` (`results.quick.json` if it is no full run)."""
    parser = argparse.ArgumentParser(description="How fast and how small, beside plain OpenSlide and other libraries")
    parser.add_argument("--quick", action="store_true", help="a small slide: to try it out, not to quote")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how many times each is measured (5)")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: no such part: {', '.join(sorted(unknown))}; choose from {','.join(PARTS)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: give at least 1")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.2 * cores:
        print(f"This machine is busy (load {load:.1f} on {cores} cores): do not quote these figures.")
    results = Results()
    _measure(set(parts), options.quick, options.rounds, results)
    _headline(results)
    full = not options.quick and set(parts) == set(PARTS) and options.rounds >= 5
    path = Path(__file__).parent / ("results.json" if full else "results.quick.json")
    settings = {"quick": options.quick, "parts": parts, "rounds": options.rounds, "reader": READER, "load": load}
    results.write(path, settings)
    print(results.table())
    print(f"\nAll of it is in {path}")


def _measure(parts: set[str], quick: bool, rounds: int, results: Results) -> None:
    """Measure the parts in turn."""
    if {"reading", "extraction", "stores", "training", "grading"} & parts:
        _measure_on_slide(parts, quick, rounds, results)
    if "memory" in parts:
        memory.measure(rounds, results)
    if "inference" in parts:
        from bench import inference  # noqa: PLC0415  (for the same reason)

        inference.measure(quick, rounds, results)
    if "pipeline" in parts:
        pipeline.measure(quick, rounds, results)
    if "features" in parts:
        from bench import features  # noqa: PLC0415  (for the same reason)

        features.measure(quick, rounds, results)
    if "start" in parts:
        start.measure(rounds, results)


def _measure_on_slide(parts: set[str], quick: bool, rounds: int, results: Results) -> None:
    """Measure the parts that share one drawn slide."""
    slide = make_slide(*(QUICK if quick else FULL))
    if "reading" in parts:
        reading.measure(slide, rounds, results)
    if "extraction" in parts:
        extraction.measure(slide, make_slide(*QUICK), rounds, results)
    if "stores" in parts:
        # Not at the top: the processes of all contenders import this module too, and torch comes with the stores.
        # Its NVIDIA libraries let a later `import cucim` wait for ever on a machine without GPU (cuFileDriverOpen).
        from bench import stores  # noqa: PLC0415

        stores.measure(slide, rounds, results)
    if "training" in parts:
        from bench import training  # noqa: PLC0415  (for the same reason)

        training.measure(slide, rounds, results)
    if "grading" in parts:
        from bench import grading  # noqa: PLC0415  (for the same reason)

        grading.measure(slide, rounds, results)


def _headline(results: Results) -> None:
    """Choose the headline figures; each is the median over the rounds of a ratio within a round."""
    for threads, suffix in (("1 thread", ""), ("2 threads", "_2_threads")):
        aligned = f"aligned, {threads}"
        results.head(f"read_vs_decode_limit{suffix}", "reading", ("panda", reading.LIMIT), (aligned, aligned))
        others = [BASELINE] if suffix else [name for name in reading.READERS if name not in ("panda", reading.LIMIT)]
        for other in others:
            for pattern in reading.PATTERNS:
                case = f"{pattern}, {threads}"
                results.head(f"read_vs_{other}_{pattern}{suffix}", "reading", ("panda", other), (case, case))
        for store in STORES:
            which = "" if store == DEFAULT_STORE else f"_{store}"
            for other in extraction.CUTS:
                if not other.startswith("panda"):
                    key = f"extraction{which}_vs_{_word(other)}{suffix}"
                    results.head(key, "extraction", (f"panda {store}", other), (threads, threads))
    small, large = (memory.name_case(name) for name in ("10k", "100k"))
    results.head("extraction_rss_100k_vs_10k", "memory", (memory.NAME, memory.NAME), (large, small))
    results.head("inference_rss_100k_vs_10k", "memory", ("panda inference", "panda inference"), (large, small))
    _inference_headline(results)
    _pipeline_headline(results)
    for store in STORES:
        which = "" if store == DEFAULT_STORE else f"_{store}"
        names = f"panda {store}", CACHED
        results.head(f"train_step_vs_cached{which}", "training", names, (TRAINING, TRAINING))
    results.head("grading_features_vs_pixels", "grading", ("features", "pixels"), (GRADING, GRADING))
    for part in ("features", "features cpu"):
        names = ("features.py", "the encoder alone")
        results.head(f"{part.replace(' ', '_')}_vs_encoder", part, names, (ENCODING, ENCODING))
    if values := results.rows.get(("grading memory", "end to end", GRADING_MEMORY)):
        results.headline["grading_k128_peak_mib"] = round(median(values))
    for case, key in start.KEYS.items():
        if values := results.rows.get(("start", "panda", case)):
            results.headline[key] = round(median(values), 3)


def _inference_headline(results: Results) -> None:
    """Choose the headline figures of mapping: against the network alone and the other libraries."""
    for network in NETWORKS:
        which = "" if network == UNET else "_deeplabv3"
        names = "the network alone", "this project, all of it"  # tiles/s: the slower one is below
        results.head(f"inference_wall_vs_forward{which}", "inference", names, (network, network))
    for other in ("tiatoolbox", "monai"):
        for part, what in (("mapping", ""), ("mapping memory", "_rss")):
            results.head(f"inference{what}_vs_{other}", part, ("panda", other), (MAPPING, MAPPING))
        results.head(f"inference_compiled_vs_{other}", "mapping", ("panda compiled", other), (MAPPING, MAPPING))


def _pipeline_headline(results: Results) -> None:
    """Choose the headline figures of the work around the network: against the build before and the network alone."""
    builds, whole = (pipeline.NOW_NAME, pipeline.BEFORE_NAME), (pipeline.WHOLE, pipeline.WHOLE)
    results.head("pipeline_vs_before", pipeline.MAP, builds, whole)
    results.head("post_cpu_vs_before", pipeline.FILES, builds, whole)
    results.head("infer_wall_vs_forward", pipeline.INFER, (pipeline.NOW_NAME, pipeline.ALONE), whole)
    if values := results.rows.get((f"{pipeline.MAP} cpu", pipeline.NOW_NAME, pipeline.AROUND)):
        results.headline["pipeline_cpu_ms_per_tile"] = round(median(values), 3)


def _word(name: str) -> str:
    return name.replace(" ", "_")


if __name__ == "__main__":
    main()
