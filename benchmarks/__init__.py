"""Speed and memory, compared with other implementations. See README.md in this folder."""
