"""The models: shapes, sizes, and the numbers of PyTorch's own layers up to rounding."""

import pytest
import torch
from helpers import assert_close
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from tinynet import nn
from tinynet.models import (
    CNN,
    MLP,
    MODELS,
    VGG,
    Airbench,
    CharLanguageModel,
    ConvNeXt,
    Forecaster,
    MobileNetV2,
    ResNet,
    SequenceClassifier,
    UNet,
    build,
)
from tinynet.models.steps import training_step


def torch_twin(model: nn.Module) -> torch.nn.Sequential:
    """The same network from torch.nn's layers, with the same weights, in float64."""
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
@pytest.mark.parametrize("name", ["cnn", "mlp"])
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


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 32, 32), (2, 5, 9)])
def test_logits_have_one_column_per_class(name, image_shape):
    model = build(name, image_shape=image_shape, classes=7)
    assert model(torch.zeros(2, *image_shape)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_model(name):
    """Without memory, so that large models take no time; `test_networks` compares numbers."""
    with torch.device("meta"):
        model = build(name, image_shape=(1, 32, 40), classes=7)
        assert model(torch.empty(2, 1, 32, 40)).shape == (2, 7)


@pytest.mark.parametrize("name", [*MODELS, "unet"])
def test_the_step_that_tinynet_inspect_runs(name):
    training_step(name, 2, torch.float32)  # on the device "meta"


def test_unet_has_logits_of_each_pixel():
    model = UNet(channels=3, classes=5, width=4, depth=2)
    assert model(torch.zeros(1, 3, 12, 20)).shape == (1, 5, 12, 20)
    with pytest.raises(ValueError, match=r"multiples of 4, got \[1, 3, 12, 18\]"):
        model(torch.zeros(1, 3, 12, 18))


# Name, and what builds the twin.
OF_TORCHVISION = {
    "resnet18": lambda: ResNet(depth=18),
    "resnet34": lambda: ResNet(depth=34),
    "resnet50": lambda: ResNet(depth=50),
    "vgg11_bn": lambda: VGG(depth=11),
    "vgg19_bn": lambda: VGG(depth=19),
    "mobilenet_v2": lambda: MobileNetV2(),
    "convnext_tiny": lambda: ConvNeXt(),
}


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_state_dicts_are_torchvisions(name):
    torchvision = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs, ours = getattr(torchvision, name)().state_dict(), OF_TORCHVISION[name]().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert list(ours) == list(theirs)


def test_logits_are_torchvisions():
    torchvision = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    for name in ("resnet18", "mobilenet_v2"):
        theirs, ours = getattr(torchvision, name)().eval(), OF_TORCHVISION[name]().eval()
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            assert_close(ours(images), theirs.double()(images.double()), 1e-5, name)


def test_airbench_whitens_its_patches():
    torch.manual_seed(0)
    mixed = torch.einsum("nchw,cd->ndhw", torch.randn(50, 3, 10, 10), torch.randn(3, 3))
    model = Airbench((3, 10, 10), classes=4, widths=(8, 8))
    assert not model.whitening.weight.requires_grad
    model.whiten(mixed, eps=0.0)
    with torch.no_grad():
        outputs = torch.nn.functional.conv2d(mixed.double(), model.whitening.weight.double())
    assert torch.equal(outputs[:, :12], -outputs[:, 12:])
    components = outputs[:, :12].transpose(0, 1).flatten(1)
    assert_close(components @ components.T / components.shape[1], torch.eye(12), 1e-4, "covariance")
    weights = dict(model.named_parameters())
    assert torch.equal(weights["blocks.0.weight"][3, 3], torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="unknown model 'vgg', expected one of convnet, cnn, mlp, airbench, resnet18"):
        build("vgg")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cnn", {"image_shape": (1, 3, 8)}, "image_shape must be .* at least 1 channel and 4"),
        ("cnn", {"image_shape": (0, 8, 8)}, "image_shape"),
        ("mlp", {"image_shape": (1, 8)}, "image_shape"),
        ("mlp", {"classes": 0}, "classes must be at least 1, got 0"),
        ("cnn", {"classes": -1}, "classes"),
        ("vgg11", {"image_shape": (1, 28, 28)}, "at least 1 channel and 32"),
        ("resnet18", {"stem": "other"}, "stem 'cifar' or 'imagenet', got 18 and 'other'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)


# Models of sequences. Each is compared with torch.nn's layers, one by one, in float64.


def twin_layer(layer: nn.Module) -> torch.nn.Module:
    """The layer of torch.nn with the same weights, in float64."""
    device = next(layer.parameters()).device
    if isinstance(layer, torch.nn.RNNBase):
        twin = getattr(torch.nn, layer.mode)(
            layer.input_size, layer.hidden_size, batch_first=layer.batch_first, bidirectional=layer.bidirectional
        )
    elif isinstance(layer, torch.nn.Embedding):
        twin = torch.nn.Embedding(layer.num_embeddings, layer.embedding_dim)
    else:
        assert isinstance(layer, torch.nn.Linear)
        twin = torch.nn.Linear(layer.in_features, layer.out_features)
    twin.load_state_dict(layer.state_dict())
    return twin.to(device).double()


def assert_same_gradients(model: nn.Module, twins: dict[str, torch.nn.Module]) -> None:
    expected = {f"{name}.{key}": value for name, twin in twins.items() for key, value in twin.named_parameters()}
    assert expected.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        gradient = expected[name].grad
        assert parameter.grad is not None and gradient is not None
        assert_close(parameter.grad, gradient, 1e-5, f"gradient of {name}")


def some_sequences(device: str = "cpu") -> PackedSequence:
    """Four sequences of different lengths, not sorted."""
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, 11, (length,), generator=generator) for length in (3, 7, 1, 4)]
    return pack_sequence(sequences, enforce_sorted=False).to(device)  # pyright: ignore[reportArgumentType]


@pytest.mark.kernels
@pytest.mark.parametrize(("cell", "bidirectional"), [("gru", True), ("lstm", False)])
def test_the_sequence_classifier_is_its_torch_layers(cell, bidirectional, device):
    torch.manual_seed(0)
    model = SequenceClassifier(11, 5, 6, 16, cell=cell, bidirectional=bidirectional, dropout=0.0).to(device)
    twins = {name: twin_layer(layer) for name, layer in model.named_children() if name != "dropout"}
    sequences = some_sequences(device)
    _, states = twins["recurrent"](sequences._replace(data=twins["embedding"](sequences.data)))
    last = states[0] if cell == "lstm" else states
    expected = twins["classifier"](last.transpose(0, 1).flatten(1))
    logits = model(sequences)
    assert_close(logits, expected, 1e-5, "logits")
    upstream = torch.randn_like(logits)
    logits.backward(upstream)
    expected.backward(upstream.double())
    assert_same_gradients(model, twins)


@pytest.mark.kernels
def test_the_character_model_is_its_torch_layers(device):
    torch.manual_seed(0)
    model = CharLanguageModel(9, 6, 16, dropout=0.0).to(device)
    twins = {name: twin_layer(layer) for name, layer in model.named_children() if name != "dropout"}
    characters = torch.randint(0, 9, (3, 5), device=device)
    expected = twins["head"](twins["lstm"](twins["embedding"](characters))[0])
    logits = model(characters)
    assert_close(logits, expected, 1e-5, "logits")
    upstream = torch.randn_like(logits)
    logits.backward(upstream)
    expected.backward(upstream.double())
    assert_same_gradients(model, twins)


@pytest.mark.kernels
def test_the_forecaster_is_its_torch_layers(device):
    torch.manual_seed(0)
    model = Forecaster(2, 16).to(device)
    twins = {name: twin_layer(layer) for name, layer in model.named_children()}
    values = torch.randn(3, 5, 2, device=device)
    expected = twins["head"](twins["lstm"](values.double())[0][:, -1])
    forecast = model(values)
    assert_close(forecast, expected, 1e-5, "forecast")
    upstream = torch.randn_like(forecast)
    forecast.backward(upstream)
    expected.backward(upstream.double())
    assert_same_gradients(model, twins)


def test_a_sequence_gets_the_same_logits_alone_and_in_any_company():
    model = SequenceClassifier(11, 5).eval()
    together = model(some_sequences())
    alone = [torch.tensor([3, 1, 4]), torch.tensor([1]), torch.tensor([5, 9, 2, 6, 5])]
    company = model(pack_sequence(alone, enforce_sorted=False))
    for index, sequence in enumerate(alone):
        assert_close(company[index], model(pack_sequence([sequence]))[0].double(), 1e-5, "logits")
    assert together.shape == (4, 5)


def test_dropout_acts_in_training_alone():
    classifier, writer = SequenceClassifier(11, 5), CharLanguageModel(11, dropout=0.5)
    for model, inputs in ((classifier, some_sequences()), (writer, torch.randint(0, 11, (2, 6)))):
        assert not torch.equal(model(inputs), model(inputs))
        model.eval()
        assert torch.equal(model(inputs), model(inputs))


def test_reading_on_is_reading_at_once():
    model = CharLanguageModel(9, 6, 16).eval()
    characters = torch.randint(0, 9, (2, 8))
    first, states = model.advance(characters[:, :3])
    second, _ = model.advance(characters[:, 3:], states)
    assert_close(torch.cat([first, second], dim=1), model(characters).double(), 1e-5, "logits")


def test_samples_follow_the_seed_and_the_temperature():
    torch.manual_seed(0)
    model = CharLanguageModel(9, 6, 16)
    with torch.no_grad():
        model.head.weight.mul_(8)  # so that the probabilities differ
    prompt = torch.randint(0, 9, (2, 3))

    def sample(temperature: float, seed: int) -> torch.Tensor:
        return model.sample(prompt, 40, temperature, torch.Generator().manual_seed(seed))

    drawn = sample(1.0, 5)
    assert drawn.shape == (2, 40) and drawn.dtype == torch.int64 and model.training
    assert torch.equal(drawn, sample(1.0, 5)) and not torch.equal(drawn, sample(1.0, 6))
    greedy = sample(0.0, 5)
    assert torch.equal(greedy, sample(0.0, 6)) and torch.equal(greedy, sample(1e-30, 7))
    model.eval()
    text = prompt
    for _ in range(5):
        text = torch.cat([text, model(text)[:, -1].argmax(dim=1, keepdim=True)], dim=1)
    assert torch.equal(greedy[:, :5], text[:, 3:])
    assert model.sample(prompt, 0).shape == (2, 0)


def test_samples_are_drawn_from_the_probabilities_of_the_model():
    torch.manual_seed(0)
    model = CharLanguageModel(4, 3, 8).eval()
    with torch.no_grad():
        model.head.weight.mul_(8)
    prompt = torch.tensor([[2, 1]])
    drawn = model.sample(prompt.expand(20_000, 2), 1, 0.5, torch.Generator().manual_seed(0))
    expected = (model(prompt)[0, -1] / 0.5).softmax(dim=0)
    assert torch.allclose(drawn[:, 0].bincount(minlength=4) / 20_000, expected, atol=0.015)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequenceClassifier(0, 5), "vocabulary_size must be at least 1, got 0"),
        (lambda: SequenceClassifier(5, 0), "classes must be at least 1, got 0"),
        (lambda: SequenceClassifier(5, 5, hidden_size=0), "hidden_size must be at least 1, got 0"),
        (lambda: SequenceClassifier(5, 5, cell="rnn"), "cell must be one of gru, lstm, got 'rnn'"),
        (lambda: CharLanguageModel(5, embedding_size=-1), "embedding_size must be at least 1, got -1"),
        (lambda: Forecaster(features=0), "features must be at least 1, got 0"),
        (lambda: CharLanguageModel(5).sample(torch.zeros(1, 0).long(), 3), "prompt must be .*one character"),
        (lambda: CharLanguageModel(5).sample(torch.zeros(3).long(), 3), "prompt must be"),
        (lambda: CharLanguageModel(5).sample(torch.zeros(1, 1).long(), 3, -0.5), "temperature must be at least 0"),
        (lambda: CharLanguageModel(5).sample(torch.zeros(1, 1).long(), 3, float("nan")), "temperature"),
    ],
)
def test_sizes_and_samples_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
