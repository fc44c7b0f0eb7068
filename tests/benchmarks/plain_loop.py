"""What a user would write to embed q views of each image: the script beside `lidar extract`.

python plain_loop.py CHECKPOINT FOLDER N Q DEVICE OUTPUT
"""

import sys

import timm
import torch
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

VIEW = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, (0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        transforms.RandomGrayscale(0.2),
        transforms.RandomApply([transforms.GaussianBlur(23, (0.1, 2.0))], 0.5),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
CLEAN = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class ViewsAndClean:
    def __init__(self, count):
        self.count = count

    def __call__(self, image):
        return torch.stack([*(VIEW(image) for _ in range(self.count)), CLEAN(image)])


def main():
    checkpoint, folder, n, q, device, output = sys.argv[1:]
    model = timm.create_model("resnet18", num_classes=0)
    model.load_state_dict(torch.load(checkpoint))
    model.eval().to(device)
    data = Subset(ImageFolder(folder, ViewsAndClean(int(q))), range(int(n)))
    embeddings = []
    with torch.no_grad():
        for images, _ in DataLoader(data, batch_size=5, num_workers=2):
            embeddings.append(
                model(images.flatten(0, 1).to(device)).view(*images.shape[:2], -1).cpu()
            )
    torch.save(torch.cat(embeddings), output)


if __name__ == "__main__":
    main()
