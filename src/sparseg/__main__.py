"""`python -m sparseg`: the command line, also under torchrun."""

from sparseg.cli.main import main

main()
