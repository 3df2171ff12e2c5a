"""An LSTM that reads an image row by row, as a keyword spotter reads a spectrogram frame by frame.

python -m src.train net=examples.keyword_lstm:network dataset=mnist data_dir=FOLDER method=vanilla thg=0.01
python -m src.train net=examples.keyword_lstm:network dataset=mnist data_dir=FOLDER method=universal_at thg=0.01
"""

from torch import Tensor, nn


class KeywordLSTM(nn.Module):
    """Images (N, 1, steps, features) in, logits (N, 10) out; the last step's state decides."""

    def __init__(self, features: int = 28, hidden: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(images.squeeze(1))
        return self.head(states[:, -1])


def network() -> nn.Module:
    return KeywordLSTM()
