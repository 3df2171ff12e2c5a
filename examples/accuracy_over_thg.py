"""Draw clean accuracy and lowest accuracy found against th_g, from the records of a sweep.

python -m src.train -m method=vanilla,atrice thg=0.01,0.02,0.03,0.04 seed=0,1,2 \\
    hydra.sweep.dir=multirun/first_look
python examples/accuracy_over_thg.py multirun/first_look accuracy_over_thg.png

A third argument names the attack that counts, for instance ensemble; without it, all of a run's count.
Where a method was trained with several settings, each is a curve.
"""

import json
import sys

from worstcase import results_frame
from worstcase.evaluation.figures import accuracy_over_thg
from worstcase.report.rows import differing


def main(sweep: str, picture: str, attack: str | None = None) -> None:
    results = results_frame([sweep])
    results = results[(results.kind == "train") & (results.attack == (attack or results.attack))]
    if results.empty:
        by = f" with {attack}" if attack else ""
        sys.exit(f"error: no finished runs{by} below {sweep}; make some with: python -m src.train -m seed=0,1,2")
    results["network_settings"] = results.network_settings.map(wherever_it_starts)
    differ = differing(results, ["method"], ["network_settings", "method_settings"])
    results["method"] += (", " + differ).where(differ != "", "")
    try:
        accuracy_over_thg(results).savefig(picture, dpi=150)
    except ValueError as error:
        sys.exit(f"error: {error}")


def wherever_it_starts(settings: str) -> str:
    """A training's settings; of weights that it starts from, which depend on the seed, only whether it does."""
    said = json.loads(settings)
    return json.dumps(said | {"init_from": said["init_from"] is not None})


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
