"""What lmms-eval finds by its entry point: the model `vlmkit`, and `vlmkit-NAME` for every preset."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

from vlmkit import presets

MODEL = "vlmkit_lmms_eval.model."


def classes() -> dict[str, str]:
    """Name of a class -> the preset it answers for. Runs and studies, which lie in folders, are none."""
    names = [name for name in presets() if "/" not in name]
    return {"Vlmkit_" + "".join(c if c.isalnum() else "_" for c in name): name for name in names}


def manifests() -> list[ModelManifest]:
    each = [ModelManifest(f"vlmkit-{preset}", chat_class_path=MODEL + name) for name, preset in classes().items()]
    return [ModelManifest("vlmkit", chat_class_path=MODEL + "Vlmkit"), *each]
