"""``python -m pspnet_fast.demo``: a small PSPNet trained on drawn scenes, compared with stock PyTorch."""
