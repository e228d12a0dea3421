"""``python -m pspnet_fast``: what is active here, and why anything is not."""

from pspnet_fast.report import report

print(report())
