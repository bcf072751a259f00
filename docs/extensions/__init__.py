"""What the two documentation tools have in common: formulas as MathML, links from guide to API."""
