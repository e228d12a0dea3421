"""Triton kernels: one file per operator, called through ``torch.ops.pspnet_fast.<operator>_triton``.

Importing a kernel file imports triton; nothing here is imported before an operator runs on this backend.
"""
