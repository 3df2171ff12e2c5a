"""Draw and print clean accuracy against what each attack finds, for the training methods of a sweep.

python -m src.train -m method=vanilla,universal_at seed=0,1,2 hydra.sweep.dir=multirun/methods
for run in multirun/methods/*/*/*/; do
    python -m src.evaluate run=$run attack=lwc; python -m src.evaluate run=$run attack=ensemble
done
python examples/compare_methods.py multirun/methods methods.png
"""

import sys
from pathlib import Path

from worstcase.evaluation.figures.methods import markdown, methods
from worstcase.report.rows import read_runs
from worstcase.report.training import method_tables


def main(sweep: str, picture: str) -> None:
    runs = read_runs([Path(sweep)])
    trained = sorted({run.trained.config["thg"] for run in runs if run.trained})
    tables = [made for thg in trained for made in method_tables(runs, thg)]
    if not tables:
        sys.exit(f"error: no finished runs below {sweep}; make some with: python -m src.train -m seed=0,1,2")
    if len(tables) > 1:
        sys.exit(f"error: one network, scale and th_g is compared, not: {'; '.join(title for title, _ in tables)}")
    ((title, table),) = tables
    methods(table, title).savefig(picture, dpi=150)
    print(markdown(table))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
