"""Trains the demo's two models for many seeds and prints the rules that each breaks.

The healthy model must break none at warning or above, the sick one all of `evenkeel.cli.demo.SICK_SHOWS`; the exit code
is 1 otherwise. A seed takes about a minute. Finished seeds are kept in the results file, and a second run goes on from
there; delete the file after a change of the demo or of a rule.

    python benchmarks/demo_seeds.py [--seeds 20] [--results build/demo_seeds.jsonl]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from evenkeel.cli.demo import SICK_SHOWS, STEPS, healthy_config, sick_config, train_watched, unexpected
from evenkeel.schema import Document


def main() -> int:
    """Run the seeds that have no result yet, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=Path("build/demo_seeds.jsonl"))
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    done = _read(arguments.results)
    for seed in range(arguments.seeds):
        if seed not in done:
            done[seed] = run_seed(seed)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[seed]) + "\n")
        print(_row(done[seed]), flush=True)
    results = [done[seed] for seed in range(arguments.seeds)]
    print(_summary(results))
    return int(any(result["unexpected"] for result in results))


def run_seed(seed: int) -> dict[str, Any]:
    """Losses and codes of both models for one seed."""
    _, healthy = train_watched(healthy_config(), seed=seed, steps=STEPS)
    _, sick = train_watched(sick_config(), seed=seed, steps=STEPS)
    return {
        "seed": seed,
        "healthy": {"loss": _loss(healthy), "codes": _codes(healthy)},
        "sick": {"loss": _loss(sick), "codes": _codes(sick)},
        "unexpected": unexpected(healthy, sick),
    }


def _read(path: Path) -> dict[int, dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {result["seed"]: result for result in map(json.loads, lines)}


def _codes(document: Document) -> dict[str, str]:
    return {finding.code: finding.severity for finding in document.findings}


def _loss(document: Document) -> float:
    """The loss at the last measured step, in nats per byte."""
    return [reading.values[0] for reading in document.readings if reading.stat == "loss"][-1]


def _row(result: dict[str, Any]) -> str:
    sides = []
    for name in ("healthy", "sick"):
        codes = " ".join(f"{code}({severity})" for code, severity in sorted(result[name]["codes"].items()))
        sides.append(f"{name} {result[name]['loss']:.2f} nats: {codes or 'none'}")
    return f"seed {result['seed']:>2}  " + "  ".join(sides)


def _summary(results: list[dict[str, Any]]) -> str:
    sick = [f"{code} in {sum(code in result['sick']['codes'] for result in results)}" for code in SICK_SHOWS]
    clean = sum(set(result["healthy"]["codes"].values()) <= {"info"} for result in results)
    return f"of {len(results)} seeds: healthy without a warning in {clean}; sick with {', '.join(sick)}"


if __name__ == "__main__":
    sys.exit(main())
