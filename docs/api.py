"""Makes the API pages from the docstrings: build/api/index.html. Needs the extra `docs`.

python docs/api.py
"""

import warnings
from pathlib import Path

import pdoc

import worstcase

OUT = Path(__file__).parent.parent / "build" / "api"
MODULES = (
    "worstcase",  # and worstcase.attacks, which it exports
    "worstcase.methods",
    "worstcase.models",
    "worstcase.data",
    "worstcase.callbacks",
    "worstcase.certificate",
    "worstcase.objectives",
    "worstcase.task",
    "worstcase.batches",
    "worstcase.chip.arrays",
    "worstcase.chip.noise",
    "worstcase.chip.presets",
    "worstcase.chip.quantisation",
    "worstcase.chip.tolerance_csv",
    "worstcase.chip.write_verify",
    "worstcase.evaluation.diagnosis",
    "worstcase.evaluation.flags",
    "worstcase.evaluation.record",
    "worstcase.evaluation.sensitivity",
)


def main() -> None:
    for name in worstcase.__all__:  # imported on first use, which pdoc would not see
        setattr(worstcase, name, getattr(worstcase, name))
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a module or name that is not there
        warnings.filterwarnings("ignore", "Error parsing type annotation")  # inherited from another module
        pdoc.pdoc(*MODULES, output_directory=OUT)
    print(f"{len(list(OUT.rglob('*.html')))} pages: {OUT / 'index.html'}")


if __name__ == "__main__":
    main()
