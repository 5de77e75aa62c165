"""The scripted world: seeded, captioned clips with known cuts, that can be made anywhere."""
