"""Everything about the package is said once, in settings.ini; this reads it."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = {name: cfg[f'{name}_requirements'].split() for name in ('notebook', 'text', 'wandb', 'trackio', 'dev')}
extras['dev'] = extras['notebook'] + extras['text'] + extras['dev']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    url=cfg['git_url'],
    license='Apache-2.0',
    keywords=cfg['keywords'],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    packages=['text2sign', 'text2sign.weights'],
    package_dir={'text2sign.weights': 'checkpoints'},           # what ships lies in git once
    package_data={'text2sign.weights': [
        'fs-a*.safetensors', 'reader-*.safetensors', '*.yaml', 'fs-ase.json']},
    include_package_data=False,
    entry_points={
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
        'console_scripts': cfg['console_scripts'].split()},
)
