"""nbs/images/generated.gif: texts that training never showed, made by the shipped model and read back as they come.

    python docs/make_gif.py
"""
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from text2sign.checkpoint import find_checkpoint, load_model
from text2sign.core import shipped_dir
from text2sign.evaluate import collapse_labels
from text2sign.reader import load_reader
from text2sign.sample import generate
from text2sign.settings import Settings
from text2sign.texts import parse_languages, training_texts

TEXTS = {'HELLO ZOE': 'ase', 'VIXEN': 'ase', 'MÜTZE': 'gsg'}
SIDE, LINE = 132, 24            # pixels: of a clip, of a line of text
FPS = 12
FONT = ImageFont.truetype(f'{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf', 13)


def caption(word, letters):
    "Two lines under a clip: what was asked for, and what was read so far."
    image = Image.new('RGB', (SIDE, 2*LINE), 'white')
    draw = ImageDraw.Draw(image)
    draw.text((6, 3), word, 'gray', FONT)
    draw.text((6, LINE - 1), f'read   {letters}', 'black', FONT)
    return np.asarray(image)


def with_captions(clip, text, language, reader, length):
    "A clip (T, H, W, 3) enlarged, with its captions below: (length, SIDE + 2*LINE, SIDE, 3)."
    labels = reader.frame_labels(clip[None], languages=language)[0]
    letters, least = reader.config.letters, reader.config.least
    frames = []
    for t, frame in enumerate(clip):
        large = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        read = collapse_labels(labels[:t + 1], letters, least)
        frames.append(np.concatenate([large, caption(f'{language}: {text}', read)]))
    return np.stack(frames + [frames[-1]]*(length - len(frames)))


def shown(settings):
    "All words of training."
    runs = [(settings.words, settings.seed), (10_000, 1)]           # the second as checkpoints/fs-all.yaml says
    languages = parse_languages(settings.data)
    texts = [training_texts(n, languages, seed, settings.max_letters)[0] for n, seed in runs]
    return {word for part in texts for text in part for word in text.split()}


if __name__ == '__main__':
    settings = Settings.from_yaml(find_checkpoint('fs-all').with_suffix('.yaml'))
    missing = {word for text in TEXTS for word in text.split()} & shown(settings)
    assert not missing, f'training has shown {missing}'
    model, reader = load_model('fs-all'), load_reader(shipped_dir()/'reader-conv.safetensors')
    clips = [generate(model, [text], language=language)[0] for text, language in TEXTS.items()]
    length = max(map(len, clips)) + 6
    film = np.concatenate([with_captions(clip, text, language, reader, length)
                           for clip, (text, language) in zip(clips, TEXTS.items())], 2)
    palette = Image.fromarray(film.reshape(-1, film.shape[2], 3)).quantize(32)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in film]
    path = Path(__file__).parent.parent/'nbs'/'images'/'generated.gif'
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000/FPS), loop=0, optimize=True)
    print(path, path.stat().st_size//1000, 'kB')
