"""How tight write-verify has to be for an accuracy, where, and what that costs."""
