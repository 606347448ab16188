"""Fast twins of plain modules (modules.py), the Triton kernels that they call, and CUDA graphs.

Every twin has its plain module's parameters and state_dict, and gives the same results up to
rounding. docs/performance.md has the gain of each kernel.
"""
