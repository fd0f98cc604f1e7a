"""Files of models, read and written. This folder has what all of them share; each package has one kind of file.

Packages from the ground up: `tokenizers`, `adapters`, `layouts` (models in folders), `pickles` (read to be converted).
"""
