"""One page of your runs, and the paper's figures and tables: python -m src.report."""

from worstcase.app.report import main

if __name__ == "__main__":
    main()
