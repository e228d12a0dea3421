"""``python -m pspnet_fast``: what is active here, and why anything is not."""

import signal

from pspnet_fast.report import report

if hasattr(signal, "SIGPIPE"):  # a reader that has enough, such as head, ends this quietly
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
print(report())
