"""Make one page of your runs and of the paper's figures and tables: python -m src.report."""

from worstcase.app.report import main

if __name__ == "__main__":
    main()
