"""Starts the demo."""

from pspnet_fast.cli import main

main("pspnet_fast.demo.command", "the demo")
