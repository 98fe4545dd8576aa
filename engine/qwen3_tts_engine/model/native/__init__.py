"""Decoder layers, whole frames and the codec's activation in C++, for x86 processors with AVX2 or AVX-512.

They are compiled when the package is built (hatch_build.py); without that, on another processor and for
weights of other sizes PyTorch computes. docs/decisions/0016 tells why, `library.cpp` is what is called.
"""
