"""``cutmix serve``: a local page that takes an image and shows classes, probabilities and the heat map."""

from typing import Any

from PIL import Image

from cutmix.config.options import ServeOptions
from cutmix.errors import InputError, missing_extra
from cutmix.inference.explain import explain_image, heat_maps
from cutmix.inference.model import Model, load


def run_serve(options: ServeOptions, *, block: bool = True) -> Any:
    """Serve a classifier on the loopback address until Ctrl-C.

    Args:
        options: The model and the port.
        block: Wait; otherwise return while a thread serves, until ``close`` of what is returned is called.

    Returns:
        gradio's page.

    Raises:
        InputError: If the model cannot be used, gradio is not installed, or the port is in use.
    """
    page = make_page(load(options.source, which=options.which, device=options.device))
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1", server_port=options.port, share=False, quiet=True, prevent_thread_lock=True,
            footer_links=[],
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"--port {options.port} cannot be used: {' '.join(str(error).split())}") from None
    print(f"{address} classifies images; Ctrl-C ends it", flush=True)
    if block:
        try:
            page.block_thread()
        finally:
            page.close()
    return page


def make_page(model: Model) -> Any:
    """Return the page of a model.

    Raises:
        InputError: If gradio is not installed.
    """
    try:
        import gradio
    except ImportError:
        raise missing_extra("cutmix serve", "serve") from None
    explainer = heat_maps(model)

    def classify(image: Image.Image | None) -> tuple[dict[str, float], Image.Image | None]:
        if image is None:
            return {}, None
        found = explain_image(model, image.convert("RGB"), explainer=explainer)
        ranked = zip(model.classes, found.probabilities.tolist(), strict=True)
        return dict(ranked), Image.fromarray(found.overlay())

    calibrated = "calibrated on held-out images" if model.calibrated else "not calibrated"
    return gradio.Interface(
        classify, gradio.Image(type="pil", label="image"),
        [gradio.Label(num_top_classes=min(5, len(model.classes)), label="classes"),
         gradio.Image(label=f"heat map ({explainer.name})")],
        title=f"{model.recipe.name}: {len(model.classes)} classes",
        description=f"{model.recipe.model}; probabilities are {calibrated}. Images stay on this machine.",
        flagging_mode="never", analytics_enabled=False, api_name="classify",
    )  # fmt: skip
