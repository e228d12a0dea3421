"""What setup.py needs to build the extension: finding torch, driving CMake, and saying what was built."""
