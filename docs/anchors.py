"""The anchor of a heading, as Jupyter makes it."""


def slug(title): return title.strip().replace(' ', '-')
