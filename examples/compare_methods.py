"""Draw and print clean accuracy against what each attack finds, for the training methods of a sweep.

python -m src.train -m method=vanilla,universal_at seed=0,1,2 hydra.sweep.dir=multirun/methods
for run in multirun/methods/*/*/*/; do
    python -m src.evaluate run=$run attack=lwc; python -m src.evaluate run=$run attack=ensemble
done
python examples/compare_methods.py multirun/methods methods.png
"""

import sys
from pathlib import Path

from worstcase.figures.methods import accuracies_by_method, markdown, methods
from worstcase.results import finished_runs


def main(sweep: str, picture: str) -> None:
    records = [record for _, record in finished_runs([Path(sweep)])]
    if not records:
        sys.exit(f"error: no finished runs below {sweep}; make some with: python -m src.train -m seed=0,1,2")
    table = accuracies_by_method(records)
    first = records[0]
    title = f"{first.model} on {first.dataset}, {first.samples} images, th_g {first.thg:g}"
    methods(table, title).savefig(picture, dpi=150)
    print(markdown(table))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
