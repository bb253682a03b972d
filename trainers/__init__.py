"""Thin nnU-Net trainers. nnU-Net imports each file of this folder under its bare name: no relative
imports here.
"""
