"""What the larger commands take: one parser each, made without importing PyTorch."""

from nnssl.parsers.convert import convert_parser
from nnssl.parsers.plan import plan_parser, spacing_of
from nnssl.parsers.pretrain import pretrain_parser

__all__ = ["convert_parser", "plan_parser", "pretrain_parser", "spacing_of"]
