"""The models: shapes, sizes, and the same numbers as PyTorch's own layers give."""

import pytest
import torch
from helpers import assert_close

from tinynet import nn
from tinynet.models import CNN, MLP, MODELS, build


def torch_twin(model: nn.Module) -> torch.nn.Sequential:
    """The same network of torch.nn's layers, with the same weights, in float64."""
    layers: list[torch.nn.Module] = []
    for name, weight in model.state_dict().items():
        if not name.endswith("weight"):
            continue
        if weight.ndim == 4:
            layers += [torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1), torch.nn.ReLU()]
            layers += [torch.nn.MaxPool2d(2)]
        else:
            layers += [torch.nn.Flatten(), torch.nn.Linear(weight.shape[1], weight.shape[0]), torch.nn.ReLU()]
    twin = torch.nn.Sequential(*layers[:-1]).to(next(model.parameters()).device).double()
    parameters = list(twin.parameters())
    with torch.no_grad():
        for parameter, value in zip(parameters, model.parameters(), strict=True):
            parameter.copy_(value)
    return twin


@pytest.mark.kernels
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_torch_layers(name, device):
    torch.manual_seed(0)
    model = build(name, image_shape=(3, 8, 11), classes=5).to(device)
    twin = torch_twin(model)
    images = torch.randn(3, 3, 8, 11, device=device)
    upstream = torch.randn(3, 5, device=device)
    logits = model(images)
    expected = twin(images.double())
    assert_close(logits, expected, 1e-5, "logits")
    logits.backward(upstream)
    expected.backward(upstream.double())
    for (key, parameter), twin_parameter in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None and twin_parameter.grad is not None
        assert_close(parameter.grad, twin_parameter.grad, 1e-5, f"gradient of {key}")


def test_the_cnn_has_3136_features_of_an_mnist_image():
    model = CNN()
    assert model.classifier[1].in_features == 3136
    assert sum(parameter.numel() for parameter in model.parameters()) == 421_642


def test_the_mlp_has_the_hidden_sizes_given():
    model = MLP((1, 4, 5), classes=3, hidden_sizes=(7, 6))
    assert [tuple(weight.shape) for weight in model.parameters()] == [(7, 20), (7,), (6, 7), (6,), (3, 6), (3,)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 32, 32), (2, 5, 9)])
def test_logits_have_one_column_a_class(name, image_shape):
    model = build(name, image_shape=image_shape, classes=7)
    assert model(torch.zeros(2, *image_shape)).shape == (2, 7)


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="there is no model 'vgg'; there is cnn, mlp"):
        build("vgg")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cnn", {"image_shape": (1, 3, 8)}, "image_shape must be .* at least 1 channel and 4"),
        ("cnn", {"image_shape": (0, 8, 8)}, "image_shape"),
        ("mlp", {"image_shape": (1, 8)}, "image_shape"),
        ("mlp", {"classes": 0}, "classes must be at least 1, got 0"),
        ("cnn", {"classes": -1}, "classes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)
