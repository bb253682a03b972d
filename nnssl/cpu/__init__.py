"""What only CPUs need: the same functions, with less memory traffic. A GPU does without all of it.

Each module says when it `is_supported`, and has the plain formula beside it, which its tests
compare it with:

attention   window attention, a few windows at a time     | `nnssl.encoder.attention.plain`
norm_act    instance norm and LeakyReLU, in place         | `nnssl.encoder.norms.instance_norm`
upsampling  upsampling, joining and convolving in one     | `nnssl.network.decoders.UpBlock`
"""
