"""The parts of `distill_cifar.py`. Each file knows one room; the loop itself is in the script."""
