"""Machines that are reached by SSH: which they are, how commands run there, and whether they are fit for members."""
