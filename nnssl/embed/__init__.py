"""Features of scans from a pretrained encoder: `nnssl_embed`, and `nnssl.load_encoder` in Python.

scan_encoder      the encoder as a plain module that prepares its own scans
scan              a scan read, checked and put on the pretraining's grid, its body, its labels
npz               arrays in one file, written whole or not at all
pooling           maps of whole scans, in windows where they are large; means over regions
table             what is kept of each scan, and the tables of all of them
feature_settings  what the features of a folder depend on
work              the command: survey, encode, tables; continues where it was stopped
neighbours        nearest neighbours and a projection
embed_options     the options of the command
"""
