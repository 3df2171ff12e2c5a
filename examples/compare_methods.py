"""Draw and print clean accuracy and what each attack finds, for the training methods of a sweep.

python -m src.train -m method=vanilla,universal_at seed=0,1,2 hydra.sweep.dir=multirun/methods
for run in multirun/methods/*/*/*/; do
    python -m src.evaluate run=$run attack=lwc; python -m src.evaluate run=$run attack=ensemble
done
python examples/compare_methods.py multirun/methods methods.png
"""

import sys

import pandas as pd

from worstcase import results_frame
from worstcase.evaluation.figures.methods import methods
from worstcase.report.rows import differing, drawn_together, lowest, with_clean

ATTACKS = ["clean", "flwc", "lwc", "ensemble"]


def main(sweep: str, picture: str) -> None:
    results = with_clean(results_frame([sweep]))
    results = results[results.as_trained & results.thg.isin(results.trained_thg) & results.attack.isin(ATTACKS)]
    compared = [one for group in drawn_together(results) for _, one in group.groupby("thg")]
    if not compared:
        sys.exit(f"error: no finished runs below {sweep}; make some with: python -m src.train -m seed=0,1,2")
    if len(compared) > 1:
        settings = ["network_settings", "reference_settings"]
        differ = differing(results, ["network", "dataset"], settings)
        titles = [f"{title(one)} {differ[one.index[0]]}".strip() for one in compared]
        sys.exit(f"error: compare one network, scale and th_g at a time, not: {'; '.join(titles)}")
    found = lowest(compared[0], ["method", "attack", "seed"])
    methods(found, title(found)).savefig(picture, dpi=150)
    print(markdown(found))


def title(results: pd.DataFrame) -> str:
    one = results.iloc[0]
    return f"{one.network} on {one.dataset}, th_g {one.thg:g}"


def markdown(results: pd.DataFrame) -> str:
    """A Markdown table of mean ± standard deviation in percent, the best under the strongest attack on top."""
    found = 100 * results.pivot(index=["method", "seed"], columns="attack", values="attacked_accuracy").astype(
        float
    )
    found = found.reindex(columns=[name for name in ATTACKS if name in found])
    seeds = found.groupby("method")
    mean, deviation = seeds.mean(), seeds.std()
    spread = deviation.map(" ± {:.2f}".format).where(deviation.notna(), "")
    cells = (mean.map("{:.2f}".format) + spread).where(mean.notna(), "-")
    counts = seeds.count()
    few, many = counts.min(axis=1).astype(str), counts.max(axis=1).astype(str)
    cells.insert(0, "seeds", many.where(few == many, few + " to " + many))
    order = mean.sort_values(mean.columns[-1], ascending=False).index
    lines = [["method", *cells], ["---"] * (1 + len(cells.columns))]
    lines += [[f"`{method}`", *cells.loc[method]] for method in order]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
