"""LiDAR while a model is trained, of batches as they come, without storing embeddings."""

import torch

import lidar_cli

SAMPLES, VIEWS, WIDTH = 300, 4, 12


def main() -> None:
    """Print LiDAR after each epoch, and stop when it falls: the embedding collapses."""
    torch.manual_seed(0)
    images = torch.randn(SAMPLES, 1, WIDTH)
    best = 0.0
    for epoch in range(5):
        scales = torch.linspace(1.0, 1.0 + epoch, WIDTH) ** -epoch  # of a network that collapses
        moments = lidar_cli.Moments(n_views=VIEWS, dim=WIDTH)
        for batch in images.split(50):
            moments.update((batch + 0.3 * torch.randn(len(batch), VIEWS, WIDTH)) * scales)
        value = moments.lidar()
        print(f"epoch {epoch}: lidar {value:.2f}, {moments}")
        if value < 0.8 * best:
            print("lidar falls: stop")
            return
        best = max(best, value)


if __name__ == "__main__":
    main()
