"""Labels, a colour map's overlay: a file of `pspnet-fast export RUN/best.pt --normalize` on pictures, without PyTorch.

python run_onnx.py best.onnx street.jpg street_overlay.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, picture, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map

image = np.asarray(Image.open(picture).convert("RGB"))
(labels,) = session.run(None, {"image": image[None]})

palette = np.array(json.loads(about["palette"]), dtype=np.uint8)
Image.fromarray((image // 2 + palette[labels[0]] // 2).astype(np.uint8)).save(out)
for index, name in enumerate(json.loads(about["classes"])):
    share = (labels == index).mean()
    if share > 0:
        print(f"{share:6.1%}  {name}")
