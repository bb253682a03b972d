"""Networks of others that our encoder is compared with, put together from MONAI's parts."""
