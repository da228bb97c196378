"""`vqvdm export`: a pipeline as programs of `torch.export`, which run without this package.

programs.py    both networks as programs, and the numbers that sampling needs
sampler.py     what samples from them with torch alone; copied beside the programs
command.py     `vqvdm export`
"""
