"""nbs/images/generated.gif: words that training never showed, made by the shipped model and read back as they come.

    python docs/make_gif.py
"""
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from text2sign.checkpoint import load_model
from text2sign.core import shipped_dir
from text2sign.evaluate import collapse_labels
from text2sign.reader import load_reader
from text2sign.sample import generate
from text2sign.words import splits

WORDS = ['HAZEL', 'STORY', 'VIXEN']
SIDE, LINE = 168, 26            # pixels: of a clip, of a line of text
FPS = 12
FONT = ImageFont.load_default(17)


def caption(word, letters):
    "Two lines under a clip: what was asked for, and what was read so far."
    image = Image.new('RGB', (SIDE, 2*LINE), 'white')
    draw = ImageDraw.Draw(image)
    draw.text((6, 3), f'asked  {word}', 'gray', FONT)
    draw.text((6, LINE - 1), f'read   {letters}', 'black', FONT)
    return np.asarray(image)


def with_captions(clip, word, reader):
    "A clip (T, H, W, 3) enlarged, with its captions below: (T, SIDE + 2*LINE, SIDE, 3)."
    labels = reader.frame_labels(clip[None])[0]
    letters, least = reader.config.letters, reader.config.least
    frames = []
    for t, frame in enumerate(clip):
        large = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        frames.append(np.concatenate([large, caption(word, collapse_labels(labels[:t + 1], letters, least))]))
    return np.stack(frames + [frames[-1]]*6)


if __name__ == '__main__':
    missing = set(WORDS) - set(splits()['unseen'])
    assert not missing, f'training may have shown {missing}'
    clips = generate(load_model('fs-ase'), WORDS)
    reader = load_reader(shipped_dir()/'reader-conv.safetensors')
    film = np.concatenate([with_captions(clip, word, reader) for clip, word in zip(clips, WORDS)], 2)
    palette = Image.fromarray(film.reshape(-1, film.shape[2], 3)).quantize(48)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in film]
    path = Path(__file__).parent.parent/'nbs'/'images'/'generated.gif'
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000/FPS), loop=0, optimize=True)
    print(path, path.stat().st_size//1000, 'kB')
