"""Trains a classifier of handwritten digits, on one page: model, loss, backward and step.

python examples/minimal.py
"""

import torch

from tinynet import nn, optim
from tinynet.data import load_images

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
data = load_images("mnist5k")
train_images, test_images = (x.to(device).float() / 255 for x in (data.train_images, data.test_images))
train_labels, test_labels = data.train_labels.to(device), data.test_labels.to(device)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, activation="relu"),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1, activation="relu"),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(32 * 7 * 7, 10),
).to(device)
loss_function = nn.CrossEntropyLoss()
optimizer = optim.AdamW(model.parameters(), lr=2e-3)

for epoch in range(5):
    for batch in torch.randperm(len(train_images), device=device).split(64):
        loss = loss_function(model(train_images[batch]), train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, test accuracy {accuracy:.1%}")
