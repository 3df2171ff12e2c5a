"""The network as a chip holds it: programmed weights, what may happen to them, and what write-verify costs."""
