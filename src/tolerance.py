"""How tight write-verify has to be for an accuracy: python -m src.tolerance accuracy=0.95."""

from worstcase.app.tolerance import main

if __name__ == "__main__":
    main()
