"""Attack a trained network, or your own weights: python -m src.evaluate."""

from worstcase.app.evaluate import main

if __name__ == "__main__":
    main()
