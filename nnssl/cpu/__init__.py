"""What only CPUs need: the same functions, with less memory traffic. A GPU does without all of it.

Each module says when it `is_supported`, and has the plain formula beside it, which its tests
compare it with:

window_attention    window attention, a few windows at a time | `nnssl.encoder.attention.reference`
norm_act_in_place   instance norm and LeakyReLU               | `nnssl.encoder.norms.instance_norm`
upsampling          upsampling, joining, convolving in one    | `nnssl.network.decoders.UpBlock`

`products` says who computes matrix products.
"""
