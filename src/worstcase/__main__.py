"""python -m worstcase train: the same as the console script's ``worstcase train``."""

from worstcase.app.console import main

if __name__ == "__main__":
    main()
