"""``python -m pspnet_fast.demo``: a small PSPNet trained on drawn scenes, beside the same net in stock PyTorch."""
