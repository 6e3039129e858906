"""Triton device functions and kernels that more than one op room launches."""
