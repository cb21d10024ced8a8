"""Fit the probability that a fact is mnemonic to its strength, and measure it on organisms that were not fitted.

    python benchmarks/calibration.py --judged out/verdicts --organisms out/organisms

Takes what `benchmarks/verdicts.py` has judged: organisms for development are fitted, every one of them also left out
once, and those opened only to report are measured. Free facts, which have no truth, and facts not recalled count
nowhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, special
from verdicts import SUITE, markdown

from mnemo.facts import Task
from mnemo.scoring import calibration_error, read_truth, with_truth


def judged_facts(name: str, judged: Path, organisms: Path) -> pd.DataFrame:
    """Return `strength` and `mnemonic` (the truth) of an organism's facts."""
    table = pd.read_csv(judged / name / "verdicts.csv")
    truth = read_truth(organisms / name / "truth.csv", Task.read(organisms / name).load_facts())
    facts = with_truth(table, truth)
    facts = facts[(facts["kind"] != "free") & facts["recalled"]]
    return pd.DataFrame({"strength": facts["strength"].fillna(0.0), "mnemonic": facts["kind"] == "mnemonic"})


def fit(facts: pd.DataFrame) -> tuple[float, float]:
    """Return slope and offset of the logistic curve of largest likelihood, with Platt's targets short of 0 and 1.

    (Where the strengths of the two kinds do not overlap, plain targets would give an infinite slope.)
    """
    strength, mnemonic = facts["strength"].to_numpy(dtype=float), facts["mnemonic"].to_numpy()
    up, down = mnemonic.sum(), (~mnemonic).sum()
    target = np.where(mnemonic, (up + 1) / (up + 2), 1 / (down + 2))

    def loss(curve: np.ndarray) -> float:
        z = curve[0] * strength - curve[1]
        return float(-(target * special.log_expit(z) + (1 - target) * special.log_expit(-z)).sum())

    slope, offset = optimize.minimize(loss, np.array([10.0, 5.0]), method="Nelder-Mead").x
    return float(slope), float(offset)


def measure(facts: pd.DataFrame, slope: float, offset: float) -> float:
    """Return the expected calibration error of a curve."""
    return calibration_error(special.expit(slope * facts["strength"].to_numpy() - offset), facts["mnemonic"].to_numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judged", type=Path, default=Path("out/verdicts"))
    parser.add_argument("--organisms", type=Path, default=Path("out/organisms"))
    arguments = parser.parse_args()
    there = [c for c in SUITE.values() if c.full and c.costly and (arguments.judged / c.name / "card.json").is_file()]
    facts = {c.name: judged_facts(c.name, arguments.judged, arguments.organisms) for c in there}
    fitted = [c.name for c in there if c.role == "development"]
    if not fitted:
        raise SystemExit(
            f"{arguments.judged}: no organism for development was judged there; run benchmarks/verdicts.py"
        )
    slope, offset = fit(pd.concat([facts[name] for name in fitted]))
    print(f"slope {slope:.1f}, offset {offset:.1f}, fitted to {', '.join(fitted)}\n")
    rows = []
    for case in there:
        others = [name for name in fitted if name != case.name]
        curve = (slope, offset) if case.role == "report" else fit(pd.concat([facts[name] for name in others]))
        rows.append([case.name, case.role, f"{measure(facts[case.name], *curve):.3f}", str(len(facts[case.name]))])
    print(markdown(["organism, not fitted", "role", "calibration error", "facts"], rows))


if __name__ == "__main__":
    main()
