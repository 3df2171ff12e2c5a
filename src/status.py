"""List which jobs are finished, failed, begun or missing: python -m src.status."""

from worstcase.app.status import main

if __name__ == "__main__":
    main()
