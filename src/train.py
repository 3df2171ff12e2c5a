"""Train a network and attack it: python -m src.train."""

from worstcase.app.train import main

if __name__ == "__main__":
    main()
