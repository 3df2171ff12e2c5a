"""Attack what a training left, or weights of your own: python -m src.evaluate."""

from worstcase.app.evaluate import main

if __name__ == "__main__":
    main()
